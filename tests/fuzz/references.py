"""Records that name their picture: paths and addresses that lead out, to nothing, or to what is no picture."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tests.fuzz.registry import Columns, add, not_utf8, picks
from tests.fuzz.verdicts import fetched, rejected
from tests.fuzz.world import World


def references(world: World, count: int, values: Sequence[str]) -> Columns:
    """Name pictures in one of the two forms that a column can have."""
    chosen = picks(world, count, values)
    if world.chance.random() < 0.5:
        return {"image": chosen}
    return {"image": pa.array([{"bytes": None, "path": value} for value in chosen])}


OUT = rejected("fetch", "image")


@add(OUT)
def path_traversal(world: World, count: int) -> Columns:
    name = f"{world.outside.name}/canary.png"
    values = [
        f"../{name}",
        f"pictures/../../{name}",
        f"pictures/./../../{name}",
        f"pictures/folder-link/../{name}",
        f"..//{name}",
    ]
    values += [
        f"{'../' * 60}etc/passwd",
        f"pictures/{'../' * 40}proc/self/environ",
        "..",
        "../",
        "pictures/../..",
        f"file://../{name}",
    ]
    values += [f"....//{name}", f"..%2f{name}", f"..\\{name}", f"%2e%2e/{name}", f"file:///{world.root}/../{name}"]
    return references(world, count, values)


@add(OUT)
def path_absolute(world: World, count: int) -> Columns:
    outside = world.outside / "canary.png"
    values = [
        str(outside),
        f"file://{outside}",
        f"//{outside}",
        f"file:////{outside}",
        "/etc/passwd",
        "/proc/self/environ",
        "/",
    ]
    return references(
        world, count, [*values, "/dev/zero", "/dev/stdin", f"{world.root}-other/a.png", f"{world.root}/../outside/canary.png"]
    )


@add(OUT)
def path_by_links(world: World, count: int) -> Columns:
    names = ("link.png", "chain.png", "folder-link/canary.png", "passwd.png", "environment.png", "zero.png", "folder-link")
    return references(world, count, [f"pictures/{name}" for name in names])


@add(OUT)
def path_to_no_file(world: World, count: int) -> Columns:
    names = ("pipe.png", "socket.png", "folder.png", "loop.png", "broken.png", "huge.png", "nothing.png", "good.png/b", "")
    return references(world, count, [f"pictures/{name}" for name in names])


@add(rejected("decode", "image"))
def path_to_no_picture(world: World, count: int) -> Columns:
    return references(world, count, ["pictures/empty.png"])


@add(OUT)
def path_hostile(world: World, count: int) -> Columns:
    values = [
        "",
        "\0",
        "a\0.png",
        "x" * 300,
        "d/" * 3000,
        "x" * 100_000,
        "~/canary.png",
        "~root/.ssh/id_rsa",
        "$HOME/a.png",
        "`id`",
    ]
    return references(
        world, count, [*values, "*.png", "pictures/*", "con", "a\nb.png", "\x1b[2J", "🙂" * 90, "-rf", "|id", "."]
    )


@add(rejected("record", "image"))
def path_not_utf8(world: World, count: int) -> Columns:
    return {"image": not_utf8(world, count)}


@add(OUT)
def url_of_another_scheme(world: World, count: int) -> Columns:
    rest = f"{world.outside}/canary.png"
    schemes = (
        "s3",
        "gs",
        "az",
        "ftp",
        "sftp",
        "smb",
        "hdfs",
        "memory",
        "local",
        "git",
        "github",
        "hf",
        "gopher",
        "dict",
        "jar",
    )
    values = [f"{scheme}://{rest}" for scheme in schemes] + [
        f"{chain}::file://{rest}" for chain in ("simplecache", "filecache", "zip://a")
    ]
    values += [
        f"FILE://{rest}",
        f"file://localhost{rest}",
        f"File:{rest}",
        f"file:{rest}",
        f"reference://{rest}",
        "javascript:alert(1)",
    ]
    values += [
        f"dir::file://{rest}",
        f"blockcache::file://{rest}",
        f" file://{rest}",
        f"\tfile://{rest}",
    ]
    return references(world, count, values)


@add(OUT)
def url_of_the_web(world: World, count: int) -> Columns:
    port = world.forbidden_port
    values = [
        f"http://127.0.0.1:{port}/a.png",
        f"HTTP://localhost:{port}/a.png",
        f"https://127.0.0.1:{port}/",
        "http://",
        "https:///a",
    ]
    return references(world, count, [*values, f"http://user@127.0.0.1:{port}/", f"http://[::1]:{port}/a.png"])


def secret_urls(world: World, host: str) -> list[str]:
    """Addresses with the planted secret in every place where one may stand."""
    secret = world.secret
    users = (
        f"user:{secret}",
        secret,
        f"{secret}:",
        f"us%20er:{secret}",
        f"user:p/{secret}",
        f"user:p#{secret}",
        f"user:p?{secret}",
    )
    users += (f"user:p@{secret}", f"user:it's{secret}", f'user:"{secret}', f"user:two words {secret}", f"user:{secret}\n")
    names = (
        "token",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "sig",
        "access_key",
        "AWSAccessKeyId",
        "password",
        "auth",
        "api_key",
    )
    urls = [f"http://{user}@{host}/a.png" for user in users]
    urls += [f"http://{host}/a.png?{name}={secret}" for name in names]
    urls += [f"http://{host}/a.png?size=7&{name}={secret}&x=1" for name in names] + [f"http://{host}/a.png#token={secret}"]
    urls += [
        f"http://{host}/a.png?token=it's{secret}",
        f'http://{host}/a.png?token="{secret}"',
        f"http://{host}/a.png?token=a {secret}",
    ]
    return urls + [f"s3://user:{secret}@bucket/a.png", f"//user:{secret}@host/a.png", f"ftp://user:{secret}@host/a.png"]


@add(OUT)
def url_with_secrets(world: World, count: int) -> Columns:
    return references(world, count, secret_urls(world, f"127.0.0.1:{world.forbidden_port}"))


@add(OUT, group="web")
def web_private_address(world: World, count: int) -> Columns:
    hosts = (
        "localhost",
        "127.0.0.2",
        "127.1",
        "0x7f000002",
        "2130706434",
        "0177.0.0.2",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.2]",
    )
    hosts += (
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "[fe80::1]",
        "[fc00::1]",
        "[64:ff9b::7f00:2]",
        "224.0.0.1",
    )
    port = world.forbidden_port
    return references(world, count, [f"http://{host}:{port}/canary.png" for host in hosts] + [f"https://{hosts[0]}:{port}/"])


@add(OUT, group="web")
def web_address_malformed(world: World, count: int) -> Columns:
    values = [
        "http://[::1",
        "http://[x]/",
        "http://h:99999/",
        "http://h:x/",
        "http://a..b/",
        "http:///a",
        f"http://{'x' * 70}.org/",
        "http://",
    ]
    values += [
        "http://a\0b/",
        "http://127.0.0.2\0.example/",
        "http://\ud7ff/",
        "http://%00/",
        "http://a b/",
        "http://#",
        "http://?",
        "http://@",
    ]
    values += [
        f"http://{'a.' * 200}b/",
        "http://xn--\u0080/",
        "http://-/",
        "http://[fe80::1%25eth0]/",
        "http://1.2.3.4.5/",
        "http://\u2100/",
    ]
    return references(
        world, count, [*values, "http://127.0.0.2:0/", "https://[::ffff:7f00:2]/", "http://\u0130/", "http://\xad/"]
    )


@add(fetched("fetch decode", "image"), group="web")
def web_garbage_answers(world: World, count: int) -> Columns:
    secret = f"?token={world.secret}"
    return {"image": [f"http://127.0.0.1:{world.port}/{world.chance.getrandbits(30)}{secret}" for _ in range(count)]}


@add(OUT, group="web")
def web_redirects_out(world: World, count: int) -> Columns:
    port = world.forbidden_port
    targets = (
        f"http://127.0.0.2:{port}/canary.png",
        f"file://{world.outside}/canary.png",
        "ftp://127.0.0.1/",
        "//[::1",
        f"//localhost:{port}/",
    )
    return {"image": [f"http://127.0.0.1:{world.port}/to/{target}" for target in picks(world, count, targets)]}


@add(OUT, group="web")
def web_paths_all_the_same(world: World, count: int) -> Columns:
    return path_traversal(world, count)
