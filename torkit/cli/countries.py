"""The countries of relays, by tor-geoipdb's files."""

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.files import read_file
from torkit.errors import UsageError

if TYPE_CHECKING:
    pass

# Where packages keep C tor's files: Linux distributions', those of BSDs and of Homebrew on Intel, Homebrew's.
GEOIP_DIRS = tuple(map(Path, ("/usr/share/tor", "/usr/local/share/tor", "/opt/homebrew/share/tor")))

GeoIP = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="TORKIT_GEOIP",
        help="Countries of IPv4 addresses; else tor-geoipdb's, if installed.",
    ),
]
GeoIP6 = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Countries of IPv6 addresses; else tor-geoipdb's, if installed."),
]


class Countries:
    """Countries of addresses, by the files named or installed; each is read when first needed."""

    def __init__(self, geoip: Path | None = None, geoip6: Path | None = None) -> None:
        self._paths = {4: geoip, 6: geoip6}
        self._texts: dict[int, bytes | None] = {}

    def require(self, known: Iterable[str] = ()) -> None:
        """Raises UsageError where no file tells a relay's country, which is that of its IPv4 address.

        So it does for a code of `known` that is not in the file.
        """
        from torkit.directory.geoip import UNKNOWN, has_country

        text = self._text(4)
        if text is None:
            raise UsageError(
                "no file of countries is installed", hint="install tor-geoipdb, or name --geoip FILE"
            )
        for country in known:
            if country != UNKNOWN and not has_country(text, country):
                raise UsageError(f"no address is in a country {country!r}", hint="use codes like de or us")

    def of(self, address: str) -> str | None:
        """Returns a code like `us`, or `??` for an address in no country; None without a file to look in.

        Raises DocumentError for a file that is none, UsageError for one that cannot be read.
        """
        from torkit.directory.geoip import country_of

        parsed = ip_address(address)
        text = self._text(parsed.version)
        return None if text is None else country_of(text, parsed)

    def _text(self, version: int) -> bytes | None:
        from torkit.directory.geoip import MAX_GEOIP_LEN

        if version not in self._texts:
            places = (directory / ("geoip" if version == 4 else "geoip6") for directory in GEOIP_DIRS)
            path = self._paths[version] or next((place for place in places if place.exists()), None)
            self._texts[version] = None if path is None else read_file(path, MAX_GEOIP_LEN)
        return self._texts[version]
