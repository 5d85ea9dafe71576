"""Make a wheel that brings OpenSSL: auditwheel puts libssl and libcrypto inside, and this their licence.

python contrib/repair_wheel.py WHEEL DIRECTORY
"""

import base64
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

LICENCE = Path(__file__).parent / "licences" / "OpenSSL.txt"
LICENCE_NAME = "licenses/OpenSSL.txt"  # in the wheel's dist-info

# What METADATA says of licences, and what it has to say once OpenSSL is inside.
OURS = "License-Expression: BSD-3-Clause\n"
BOTH = f"License-Expression: BSD-3-Clause AND Apache-2.0\nLicense-File: {LICENCE_NAME.partition('/')[2]}\n"


def repair(wheel: Path, directory: Path) -> Path:
    """Write the repaired wheel into `directory`; returns it. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["auditwheel", "repair", "--wheel-dir", scratch, wheel], check=True)
        (repaired,) = Path(scratch).glob("*.whl")
        made = directory / repaired.name
        add_licence(repaired, made)
    return made


def add_licence(wheel: Path, made: Path) -> None:
    """Copy a wheel, with OpenSSL's licence added and named."""
    with ZipFile(wheel) as source, ZipFile(made, "w", ZIP_DEFLATED) as target:
        (record,) = (info for info in source.infolist() if info.filename.endswith(".dist-info/RECORD"))
        dist_info = record.filename.removesuffix("/RECORD")
        lines = []

        def put(info: ZipInfo, data: bytes) -> None:
            info.compress_type = ZIP_DEFLATED
            target.writestr(info, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{info.filename},sha256={digest},{len(data)}\n")

        for info in source.infolist():
            data = source.read(info)
            if info.filename == f"{dist_info}/METADATA":
                text = data.decode()
                if text.count(OURS) != 1:
                    raise SystemExit(f"repair_wheel: no line {OURS!r} in METADATA")
                data = text.replace(OURS, BOTH).encode()
            if info is not record and not info.is_dir():
                put(info, data)
        added = ZipInfo(f"{dist_info}/{LICENCE_NAME}", record.date_time)
        added.external_attr = 0o644 << 16
        put(added, LICENCE.read_bytes())
        target.writestr(record, "".join(lines) + f"{record.filename},,\n")


if __name__ == "__main__":
    print(repair(Path(sys.argv[1]), Path(sys.argv[2])))
