"""Programs that people run, each in two ways: under `torkit run`, and by the proxy as its manual says.

Every name is one that only the exits' DNS knows. One shell under `torkit run` is for all programs here, and
names no proxy: what they do is what they do by themselves.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from confined import skip_where_forbidden
from doors import tls_contexts
from network.far_servers import git_server, make_repository, rsync_server, ssh_server
from network.servers import HOST, FilesServer
from network.torkit_process import Proxy, Result, Shell, missing, skip_without

pytestmark = pytest.mark.network

CONTENT = b"".join(b"%d\n" % number for number in range(60_000))  # 350 KB


NO_PROXIES = "-u http_proxy -u https_proxy -u all_proxy -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY"


class Recipe(NamedTuple):
    """A line of shell each way, which prints what it has fetched, and the programs that it needs."""

    inside: str
    proxied: str
    programs: str


PIP = (
    "{python} -m pip {proxy} --disable-pip-version-check --isolated download -q --no-deps --no-cache-dir"
    " -d {out} -i http://web.test:{web}/simple/ --trusted-host web.test recipe >&2"
    " && {python} -m zipfile -e {out}/recipe-1-*.whl {out} && cat {out}/file"
)
APT = (
    "mkdir -p {out}/lists/partial {out}/cache/archives/partial && touch {out}/status"
    " && echo 'deb [trusted=yes] http://web.test:{web}/debian ./' >{out}/list && cd {out}"
    " && set -- -qq {proxy} -o Dir::State={out} -o Dir::State::status={out}/status -o Dir::Cache={out}/cache"
    " -o Dir::Etc::sourcelist={out}/list -o Dir::Etc::sourceparts=- -o Dir::Etc::netrcparts=-"
    ' && apt-get "$@" update >&2 && apt-get "$@" download recipe >&2 && dpkg-deb --fsys-tarfile recipe_*.deb'
    " | tar -xO ./file"
)
URL = "http://web.test:{web}/file"
ARES = (
    '{python} -c \'import sys; from curl_cffi import Curl, requests; assert b"c-ares" in Curl().version();'
    f' sys.stdout.buffer.write(requests.get("{URL}"%s).content)\''
)
SPEAK = "printf 'GET /file HTTP/1.0\\r\\n\\r\\n' | {} | sed '1,/^\\r$/d'"

RECIPES = {
    "curl": Recipe(f"curl -sS {URL}", f"curl -sS -x http://{{proxy}} {URL}", "curl"),
    "curl by TLS": Recipe(
        "curl -sSk https://web.test:{tls}/file",
        "curl -sSk -x http://{proxy} https://web.test:{tls}/file",
        "curl",
    ),
    "wget": Recipe(f"wget -qO - {URL}", f"http_proxy=http://{{proxy}} wget -qO - {URL}", "wget"),
    "wget by TLS": Recipe(
        "wget --no-check-certificate -qO - https://web.test:{tls}/file",
        "https_proxy=http://a:b@{proxy} wget --no-check-certificate -qO - https://web.test:{tls}/file",
        "wget",
    ),
    "aria2, whose resolver is c-ares": Recipe(
        f"aria2c -q --no-conf -d {{out}} {URL} && cat {{out}}/file",
        f"aria2c -q --no-conf --all-proxy=http://{{proxy}} -d {{out}} {URL} && cat {{out}}/file",
        "aria2c",
    ),
    "a libcurl built with c-ares": Recipe(ARES % "", ARES % ', proxy="http://{proxy}"', ""),
    "git by http": Recipe(
        "git clone -q http://web.test:{web}/r.git {out}/r && cat {out}/r/file",
        "git -c http.proxy=http://{proxy} clone -q http://web.test:{web}/r.git {out}/r && cat {out}/r/file",
        "git",
    ),
    "git by its own protocol": Recipe(
        "git clone -q git://git.test:{git}/r.git {out}/r && cat {out}/r/file",
        "printf '#!/bin/sh\\nexec nc -X connect -x {proxy} $1 $2\\n' >{out}/nc && chmod +x {out}/nc"
        " && git -c core.gitProxy={out}/nc clone -q git://git.test:{git}/r.git {out}/r && cat {out}/r/file",
        "git nc.openbsd",
    ),
    "git by ssh": Recipe(
        "GIT_SSH_COMMAND='{ssh}' git clone -q shell.test:{dir}/r.git {out}/r && cat {out}/r/file",
        "GIT_SSH_COMMAND='{ssh} -o \"ProxyCommand nc -X connect -x {proxy} %h %p\"'"
        " git clone -q shell.test:{dir}/r.git {out}/r && cat {out}/r/file",
        "git ssh sshd nc.openbsd",
    ),
    "ssh": Recipe(
        "{ssh} shell.test cat {dir}/file",
        "{ssh} -o 'ProxyCommand nc -X 5 -x {proxy} %h %p' shell.test cat {dir}/file",
        "ssh sshd nc.openbsd",
    ),
    "rsync": Recipe(
        "rsync rsync://files.test:{rsync}/files/file {out}/file && cat {out}/file",
        "RSYNC_PROXY={proxy} rsync rsync://files.test:{rsync}/files/file {out}/file && cat {out}/file",
        "rsync",
    ),
    "rsync by ssh": Recipe(
        "rsync -e '{ssh}' shell.test:{dir}/file {out}/file && cat {out}/file",
        "rsync -e '{ssh} -o ProxyCommand=\"nc -X 5 -x {proxy} %h %p\"' shell.test:{dir}/file {out}/file"
        " && cat {out}/file",
        "rsync ssh sshd nc.openbsd",
    ),
    "pip": Recipe(PIP.replace("{proxy}", ""), PIP.replace("{proxy}", "--proxy http://a:b@{proxy}"), ""),
    "apt": Recipe(
        APT.replace("{proxy}", ""),
        APT.replace("{proxy}", "-o Acquire::http::Proxy=http://a:b@{proxy}"),
        "apt-get dpkg-deb",
    ),
    "socat": Recipe(
        SPEAK.format("socat -t 60 - TCP:web.test:{web}"),
        SPEAK.format(f"socat -t 60 - PROXY:{HOST}:web.test:{{web}},proxyport={{port}}"),
        "socat",
    ),
    "ncat": Recipe(
        SPEAK.format("ncat web.test {web}"),
        SPEAK.format("ncat --proxy {proxy} --proxy-type http web.test {web}"),
        "ncat",
    ),
}


@pytest.fixture(scope="module")
def far_end() -> Iterator[dict[str, object]]:
    """CONTENT behind every kind of server: what a recipe's line needs to know of them."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-recipes-")))
        directory.chmod(0o755)  # apt fetches as a user of its own
        (directory / "file").write_bytes(CONTENT)
        _make_wheel(directory / "simple" / "recipe")
        _make_package(directory / "debian", directory / "package")
        known: dict[str, object] = {"dir": directory, "python": sys.executable}
        known["web"] = stack.enter_context(FilesServer(directory)).port
        server, _ = tls_contexts(directory)
        known["tls"] = stack.enter_context(FilesServer(directory, server)).port
        if not missing("git"):
            make_repository(directory / "r.git", CONTENT)
            known["git"] = stack.enter_context(git_server(directory, directory / "git.log"))
        if not missing("rsync"):
            known["rsync"] = stack.enter_context(rsync_server(directory, directory / "rsync.conf"))
        if not missing("ssh", "ssh-keygen", "sshd"):
            (directory / "ssh").mkdir()
            known["ssh"] = stack.enter_context(ssh_server(directory / "ssh"))
        yield known


@pytest.fixture
def out(far_end: dict[str, object]) -> Path:
    """An empty directory, which a user of apt's may write to, too."""
    directory = Path(tempfile.mkdtemp(dir=str(far_end["dir"])))
    directory.chmod(0o777)
    return directory


def _make_wheel(directory: Path) -> None:
    """A package index's page of `recipe` is a listing of its directory."""
    directory.mkdir(parents=True)
    with zipfile.ZipFile(directory / "recipe-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("file", CONTENT)
        wheel.writestr("recipe-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: recipe\nVersion: 1\n")
        wheel.writestr("recipe-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("recipe-1.dist-info/RECORD", "")


def _make_package(archive: Path, scratch: Path) -> None:
    """An archive of Debian's kind, flat and not signed, with the package `recipe`."""
    if missing("dpkg-deb"):
        return
    (scratch / "DEBIAN").mkdir(parents=True)
    about = "Package: recipe\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\n"
    (scratch / "DEBIAN" / "control").write_text(f"{about}Description: a file\n")
    (scratch / "file").write_bytes(CONTENT)
    archive.mkdir()
    package = archive / "recipe_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", scratch, package], check=True, capture_output=True)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    where = f"Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
    (archive / "Packages").write_text(f"{about}{where}Description: a file\n")


@pytest.fixture(scope="module")
def inside(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Result]]:
    """Runs lines in one shell under `torkit run`."""
    directory = tmp_path_factory.mktemp("inside")
    out, err = directory / "out", directory / "err"
    with shell.running(f"exec torkit run -- env {NO_PROXIES} bash -o pipefail") as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def run(line: str) -> Result:
            stdin.write(f"( {line}\n) >{out} 2>{err} </dev/null; echo $?\n".encode())
            stdin.flush()
            status = stdout.readline()
            assert status, process.communicate()[1]
            return Result(line, int(status), out.read_bytes(), err.read_bytes())

        yield run


needs = [pytest.param(name, marks=skip_without(*recipe.programs.split())) for name, recipe in RECIPES.items()]


@skip_where_forbidden()
@pytest.mark.parametrize("name", needs)
def test_under_torkit_run(
    inside: Callable[[str], Result], far_end: dict[str, object], name: str, out: Path
) -> None:
    result = inside(RECIPES[name].inside.format(**far_end, out=out))
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == CONTENT


@pytest.mark.parametrize("name", needs)
def test_by_the_proxy(shell: Shell, proxy: Proxy, far_end: dict[str, object], name: str, out: Path) -> None:
    line = RECIPES[name].proxied.format(**far_end, out=out, proxy=proxy.address, port=proxy.port)
    result = shell.run(line)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == CONTENT
