"""A certificate authority for tests, made with openssl(1)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.netns import execute


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """An authority and the certificates it gives, as files in a directory."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.crt"

    def create(self) -> Authority:
        self._key("ca")
        self._run("req", "-x509", "-new", "-key", "<ca.key>", "-days", "2", "-subj", "/CN=test CA", "-out", "<ca.crt>")
        return self

    def issue(self, name: str, alternative_names: str = "") -> tuple[Path, Path]:
        """Certificate and key for a name; `alternative_names` as in x509v3_config(5), for example IP:127.0.0.1."""
        self._key(name)
        self._run("req", "-new", "-key", f"<{name}.key>", "-subj", f"/CN={name}", "-out", f"<{name}.csr>")
        extensions = f"subjectAltName={alternative_names}" if alternative_names else "basicConstraints=CA:FALSE"
        (self.directory / f"{name}.ext").write_text(f"{extensions}\n")
        authority = ("-CA", "<ca.crt>", "-CAkey", "<ca.key>", "-CAcreateserial", "-days", "2")
        request = ("-req", "-in", f"<{name}.csr>", "-extfile", f"<{name}.ext>")
        self._run("x509", *request, *authority, "-out", f"<{name}.crt>")
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def server_context(self, alternative_names: str = "IP:127.0.0.1") -> ssl.SSLContext:
        """For a server that takes client certificates of this authority, but does not insist."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server", alternative_names))
        context.load_verify_locations(self.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _key(self, name: str) -> None:
        self._run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"<{name}.key>")

    def _run(self, *arguments: str) -> None:
        """Runs openssl; <NAME> stands for a file of the directory."""
        execute("openssl", *(f"{self.directory}/{a[1:-1]}" if a.startswith("<") else a for a in arguments))
