"""The checks, by what they look at; `metaleg_node.doctor.table` has them all."""
