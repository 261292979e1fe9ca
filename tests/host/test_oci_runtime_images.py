# ruff: noqa: F401, F811, ASYNC221 - fixtures are imported by name, and tests may block
"""Images from a real registry: choosing, pulling, naming, removing, and what is said when it fails."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import aiohttp
import pytest
from oci_bed import LINUX, LOOP, Bed, Registry, bed, pushed, registry, rootfs

from overlace.model.errors import Conflict, Internal, InvalidArgument, NotFound, OverlaceError, Unavailable
from overlace.runtime.base import FileMount, Mount, Platform, RegistryAuth
from overlace.runtime.oci.mkimage import Variant, busybox_rootfs, push, write_layout

pytestmark = pytest.mark.host
WINDOWS_BUILDS = ("10.0.17763.5000", "10.0.20348.2000", "10.0.20348.2527", "10.0.26100.1")


@pytest.fixture(scope="module")
def mixed(registry: Registry, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`mixed:1`: an index with linux/amd64, linux/arm64 and four Windows builds; each prints what it is."""
    layout = tmp_path_factory.mktemp("mixed")
    platforms = [
        LINUX,
        Platform("linux", "arm64"),
        *(Platform("windows", "amd64", b) for b in WINDOWS_BUILDS),
    ]
    variants = [
        Variant(p, rootfs, {"Cmd": ["echo", f"{p.os} {p.architecture} {p.os_version}".strip()]})
        for p in platforms
    ]
    write_layout(layout, variants, "mixed")
    write_layout(layout, [variants[3]], "onlywindows")

    async def send() -> None:
        await push(layout, "mixed", f"{registry.address}/mixed:1")
        await push(layout, "onlywindows", f"{registry.address}/onlywindows:1")

    asyncio.run(send())
    return f"{registry.address}/mixed:1"


async def test_linux_host_takes_the_linux_manifest(bed: Bed, mixed: str) -> None:
    image = await bed.runtime.pull(mixed, LINUX)
    assert image.platform == LINUX and image.tags == (mixed,)
    _, text = await bed.run(image=mixed)
    assert text == "linux amd64\n"


async def test_a_pull_tells_what_becomes_of_its_layers(bed: Bed, mixed: str) -> None:
    said: list[tuple[str, str]] = []

    def tell(layer: str, status: str) -> None:
        said.append((layer, status))

    await bed.runtime.pull(mixed, LINUX, None, tell)
    ((layer, word),) = said
    assert (len(layer), word) == (12, "Already exists"), "another image here has the same layer"
    said.clear()
    await bed.runtime.pull(mixed, LINUX, None, tell)
    assert said == [], "nothing to fetch, nothing to tell"
    for image in await bed.runtime.images():
        await bed.runtime.remove_image(image.id)
    await bed.runtime.pull(mixed, LINUX, None, tell)
    assert said == [(layer, word) for word in ("Pulling fs layer", "Download complete", "Pull complete")]


@pytest.mark.parametrize(
    ("build", "chosen"),
    [
        ("10.0.20348.2527", "10.0.20348.2527"),  # its own revision
        ("10.0.20348.2100", "10.0.20348.2000"),  # its own build: the highest revision it is not older than
        ("10.0.22621.1", "10.0.20348.2527"),  # no such build: the highest not newer
        ("10.0.17763.1", "10.0.17763.5000"),  # the build decides, not the revision
    ],
)
async def test_emulated_windows_host_runs_the_manifest_of_its_build(
    registry: Registry,
    mixed: str,
    tmp_path: Path,
    build: str,
    chosen: str,
) -> None:
    host = Platform("windows", "x86_64", build)
    bed = Bed(tmp_path, registry, host)
    try:
        await bed.runtime.open()
        image = await bed.runtime.pull(mixed, host)
        assert image.platform == Platform("windows", "amd64", chosen)
        _, text = await bed.run(image=mixed)
        assert text == f"windows amd64 {chosen}\n"
        await bed.clean()
    finally:
        bed.demolish()


async def test_windows_paths_lie_below_the_root_on_an_emulated_host(
    registry: Registry, mixed: str, tmp_path: Path
) -> None:
    host = Platform("windows", "x86_64", "10.0.20348.2527")
    bed = Bed(tmp_path, registry, host)
    try:
        await bed.runtime.open()
        await bed.runtime.pull(mixed, host)
        text = await bed.sh(
            "cat /ProgramData/Docker/secrets/key; pwd; echo x > /data/x; id -u",
            image=mixed,
            files=(FileMount("C:\\ProgramData\\Docker\\secrets\\key", b"hush\n"),),
            mounts=(Mount("volume", "C:\\data", source="v"),),
            workdir="C:\\inetpub\\wwwroot",
            user="ContainerAdministrator",
        )
        assert text == "hush\n/inetpub/wwwroot\n0\n"
        assert (bed.data_root / "volumes/v/_data/x").read_text() == "x\n"
        await bed.clean()
    finally:
        bed.demolish()


async def test_an_image_no_manifest_of_which_fits_is_refused(bed: Bed, mixed: str) -> None:
    with pytest.raises(
        NotFound, match=r"no matching manifest for windows\(10.0.14393.0\)/amd64 in the manifest list"
    ):
        await bed.runtime.pull(mixed, Platform("windows", "amd64", "10.0.14393.0"))
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x"):
        await bed.runtime.pull(mixed, Platform("linux", "s390x"))
    single = mixed.replace("mixed", "onlywindows")
    with pytest.raises(
        NotFound, match=r"is for windows\(10.0.20348.2000\)/amd64, this host runs linux/amd64"
    ):
        await bed.runtime.pull(single, LINUX)
    assert len(await bed.runtime.images()) == 1


async def test_pulls_at_once_are_one_pull(bed: Bed, mixed: str) -> None:
    images = await asyncio.gather(*(bed.runtime.pull(mixed, LINUX) for _ in range(8)))
    assert len({image.id for image in images}) == 1
    assert len(await bed.runtime.images()) == 2


async def test_a_pinned_image_is_not_asked_for_again(
    bed: Bed,
    pushed: dict[str, str],
    registry: Registry,
) -> None:
    pinned = f"{registry.address}/busy:1@{pushed['busy:1']}"
    image = await bed.runtime.pull(pinned, LINUX)
    assert (await bed.runtime.image(pinned)).id == image.id
    # Nobody listens there: only an image that is here already can be "pulled".
    bed.runtime._images._skopeo._run = None  # type: ignore[assignment,method-assign]
    assert (await bed.runtime.pull(pinned, LINUX)).id == image.id
    _, text = await bed.run(image=pinned)
    assert text == "default\n"
    await bed.reopen()
    assert (await bed.runtime.image(pinned)).id == image.id


async def test_dockers_own_manifest_format_keeps_its_extensions(
    bed: Bed, registry: Registry, rootfs: Path, tmp_path: Path
) -> None:
    """What `docker push` writes: schema 2 media types, and a healthcheck OCI has no word for."""
    config = {"Cmd": ["echo", "docker's"], "Healthcheck": {"Test": ["CMD", "true"], "Retries": 9}}
    digest = write_layout(tmp_path / "l", [Variant(LINUX, rootfs, config)], "t")
    await push(tmp_path / "l", "t", f"{registry.address}/schema2:oci")
    document = json.loads((tmp_path / "l/blobs/sha256" / digest[7:]).read_text())
    document["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    document["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    url = f"http://{registry.address}/v2/schema2/manifests/docker"
    async with (
        aiohttp.ClientSession() as session,
        session.put(
            url, data=json.dumps(document), headers={"Content-Type": document["mediaType"]}
        ) as answer,
    ):
        assert answer.status == 201, await answer.text()
    image = await bed.runtime.pull(f"{registry.address}/schema2:docker", LINUX)
    assert image.id == document["config"]["digest"] and image.config == config
    assert (await bed.run(image=image.tags[0]))[1] == "docker's\n"
    oci = await bed.runtime.pull(f"{registry.address}/schema2:oci", LINUX)  # the same image, another manifest
    assert oci.id == image.id and set(oci.tags) == {
        f"{registry.address}/schema2:{t}" for t in ("docker", "oci")
    }


async def test_names_of_an_image(bed: Bed, pushed: dict[str, str]) -> None:
    image = await bed.runtime.image(bed.image)
    repository = bed.image.rpartition(":")[0]
    assert image.digests == (f"{repository}@{pushed['busy:1']}",)
    for name in (image.id, image.id[7:], image.id[7:19], image.digests[0], f"{bed.image}@{pushed['busy:1']}"):
        assert (await bed.runtime.image(name)).id == image.id, name
    for name in ("deadbeef", f"{repository}:2", repository, "Bad Name"):
        with pytest.raises(NotFound, match="No such image"):
            await bed.runtime.image(name)
    assert image.size > 500_000 and image.config["WorkingDir"] == "/made/here" and len(image.layers) == 1


async def test_a_tag_that_moved_names_the_new_image(
    bed: Bed,
    registry: Registry,
    rootfs: Path,
    tmp_path: Path,
) -> None:
    name = f"{registry.address}/moves:1"
    ids = []
    for word in ("one", "two"):
        write_layout(tmp_path / "layout", [Variant(LINUX, rootfs, {"Cmd": ["echo", word]})], word)
        await push(tmp_path / "layout", word, name)
        ids.append((await bed.runtime.pull(name, LINUX)).id)
    assert ids[0] != ids[1]
    assert (await bed.runtime.image(name)).id == ids[1]
    assert (await bed.runtime.image(ids[0])).tags == ()
    _, text = await bed.run(image=name)
    assert text == "two\n"


async def test_failures_carry_the_registrys_words(bed: Bed, registry: Registry) -> None:
    missing = f"{registry.address}/busy:9"
    with pytest.raises(NotFound, match=rf"No such image: {missing} .*manifest unknown"):
        await bed.runtime.pull(missing, LINUX)
    with pytest.raises(Unavailable, match="connection refused"):
        await bed.runtime.pull("127.0.0.1:1/busy:1", LINUX)
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        await bed.runtime.pull("bad name", LINUX)
    assert not list((bed.data_root / "images/rootfs").glob(".*"))


async def test_credentials_open_a_registry_and_stay_out_of_sight(
    bed: Bed,
    rootfs: Path,
    tmp_path: Path,
) -> None:
    private = Registry(tmp_path, auth=True)
    try:
        write_layout(tmp_path / "layout", [Variant(LINUX, rootfs, {"Cmd": ["true"]})], "t")
        subprocess.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--dest-creds",
                "u:p",
                f"oci:{tmp_path}/layout:t",
                f"docker://{private.address}/private:1",
            ],
            check=True,
        )
        name = f"{private.address}/private:1"
        with pytest.raises(Unavailable, match=r"authentication required|unauthorized"):
            await bed.runtime.pull(name, LINUX)
        with pytest.raises(Unavailable, match=r"authentication required|unauthorized"):
            await bed.runtime.pull(name, LINUX, RegistryAuth(username="u", password="wrong"))
        image = await bed.runtime.pull(name, LINUX, RegistryAuth(username="u", password="p"))
        assert image.tags == (name,)
    finally:
        private.close()


async def test_removing_images_as_docker_does(bed: Bed, mixed: str) -> None:
    image = await bed.runtime.pull(mixed, LINUX)
    config = await bed.running(*LOOP, image=mixed)
    short, holder = image.id[7:19], config.id[:12]
    with pytest.raises(Conflict) as caught:
        await bed.runtime.remove_image(mixed)
    assert caught.value.message == (
        f'conflict: unable to remove repository reference "{mixed}" (must force) - container '
        f"{holder} is using its "
        f"referenced image {short}"
    )
    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image is being used by running container"):
        await bed.runtime.remove_image(short, force=True)
    lines = await bed.runtime.remove_image(mixed, force=True)
    assert lines[0] == f"Untagged: {mixed}" and not any(line.startswith("Deleted") for line in lines)
    assert (await bed.runtime.stop(config.id)).exit_code in (5, 137)
    await bed.runtime.start(config.id)  # its files are still there
    await bed.runtime.remove(config.id, force=True)
    blobs = set((bed.data_root / "images/blobs/sha256").iterdir())
    assert await bed.runtime.remove_image(image.id) == [f"Deleted: {image.id}"]
    assert set((bed.data_root / "images/blobs/sha256").iterdir()) < blobs
    assert len(list((bed.data_root / "images/rootfs").iterdir())) == 1
    with pytest.raises(NotFound, match=f"No such image: {mixed}"):
        await bed.runtime.remove_image(mixed)
    await bed.runtime.pull(mixed, LINUX)
    assert (await bed.run(image=mixed))[1] == "linux amd64\n"


async def test_the_last_tag_of_a_repository_takes_its_digests_along(
    bed: Bed, registry: Registry, tmp_path: Path
) -> None:
    rootfs = busybox_rootfs(tmp_path / "rootfs", applets=["sh"])
    write_layout(tmp_path / "layout", [Variant(LINUX, rootfs, {"Cmd": ["sh"]})], "t")
    one, two = f"{registry.address}/tags-one", f"{registry.address}/tags-two"
    for name in (f"{one}:1", f"{one}:2", f"{two}:1"):
        await push(tmp_path / "layout", "t", name)
        image = await bed.runtime.pull(name, LINUX)
    assert {d.split("@")[0] for d in image.digests} == {one, two}
    assert await bed.runtime.remove_image(f"{one}:1") == [f"Untagged: {one}:1"]
    lines = await bed.runtime.remove_image(f"{one}:2")
    assert [line.split("@")[0] for line in lines] == [f"Untagged: {one}:2", f"Untagged: {one}"]
    left = await bed.runtime.image(f"{two}:1")
    assert left.tags == (f"{two}:1",) and [d.split("@")[0] for d in left.digests] == [two]
    assert (await bed.runtime.remove_image(f"{two}:1"))[-1] == f"Deleted: {image.id}"


async def test_a_damaged_root_is_unpacked_again_and_a_damaged_layer_told(bed: Bed) -> None:
    image = await bed.runtime.image(bed.image)
    rootfs = bed.data_root / "images/rootfs" / image.id[7:]
    subprocess.run(["rm", "-rf", str(rootfs)], check=True)
    assert (await bed.run())[1] == "default\n"
    subprocess.run(["rm", "-rf", str(rootfs)], check=True)
    layer = max((bed.data_root / "images/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(layer.read_bytes())
    data[len(data) // 2] ^= 0xFF
    layer.write_bytes(data)
    with pytest.raises(Internal, match=f"cannot unpack image {bed.image}"):
        await bed.runtime.create(bed.config())
    assert not rootfs.exists() and not list(rootfs.parent.glob(".*"))


async def test_whiteouts_and_opaque_folders_are_applied(bed: Bed, registry: Registry, tmp_path: Path) -> None:
    """A second layer that deletes, replaces and hides: built with umoci's own tools."""
    root = busybox_rootfs(
        tmp_path / "r", {"/keep/a": b"a\n", "/keep/b": b"b\n", "/old/x": b"x\n", "/was/dir/y": b"y\n"}
    )
    write_layout(
        tmp_path / "l",
        [Variant(LINUX, root, {"Cmd": ["sh", "-c", "find /keep /old /was; cat /keep/*"]})],
        "t",
    )
    (tmp_path / "top/keep").mkdir(parents=True)
    (tmp_path / "top/old").mkdir()
    (tmp_path / "top/keep/.wh.a").touch()
    (tmp_path / "top/old/.wh..wh..opq").touch()
    (tmp_path / "top/old/new").write_text("n\n")
    (tmp_path / "top/was").write_text("a file now\n")
    subprocess.run(
        ["tar", "-C", str(tmp_path / "top"), "-cf", str(tmp_path / "top.tar"), "keep", "old", "was"],
        check=True,
    )
    subprocess.run(
        ["umoci", "raw", "add-layer", "--image", f"{tmp_path}/l:t", str(tmp_path / "top.tar")],
        check=True,
        capture_output=True,
    )
    name = f"{registry.address}/layers:1"
    await push(tmp_path / "l", "t", name)
    await bed.runtime.pull(name, LINUX)
    _, text = await bed.run(image=name)
    assert text.split() == ["/keep", "/keep/b", "/old", "/old/new", "/was", "b"]


async def test_a_full_disk_is_told_and_nothing_stays(
    registry: Registry, pushed: dict[str, str], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "small", str(small)], check=True)
    bed = Bed(small, registry)
    try:
        await bed.runtime.open()
        with pytest.raises(OverlaceError, match="no space left on device"):
            await bed.runtime.pull(bed.image, LINUX)
        assert await bed.runtime.images() == []
        await bed.reopen()
        assert not list((bed.data_root / "images/blobs/sha256").iterdir())
        assert not list((bed.data_root / "images/rootfs").iterdir())
        await bed.runtime.close()
    finally:
        bed.demolish()
        subprocess.run(["umount", "--lazy", str(small)], check=False)


async def test_missing_tools_are_named(bed: Bed, mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlace.runtime.oci.process.find_tool", lambda name: None)
    with pytest.raises(Unavailable, match="skopeo is not installed on this host: install it"):
        await bed.runtime.pull(mixed, LINUX)
    config = bed.config()
    await bed.runtime.create(config)
    with pytest.raises(Unavailable, match="conmon is not installed on this host"):
        await bed.runtime.start(config.id)
    monkeypatch.setattr("overlace.runtime.oci.shim.find_tool", lambda name: None)
    await bed.reopen()
    assert "no OCI runtime works on this host" in (await bed.runtime.version())["error"]
    with pytest.raises(Unavailable, match="runc: not installed; crun: not installed"):
        await bed.runtime.create(bed.config())
    assert len(await bed.runtime.images()) == 1  # the host can still manage
    monkeypatch.undo()
    await bed.reopen()


@pytest.mark.parametrize("damage", ["removed", "cut", "layout"])
async def test_image_whose_files_were_lost_is_fetched_again(bed: Bed, damage: str) -> None:
    await bed.runtime.pull(bed.image, LINUX)
    pinned = (await bed.runtime.image(bed.image)).digests[0]
    images = bed.data_root / "images"
    subprocess.run(["rm", "-r", *map(str, (images / "rootfs").iterdir())], check=True)
    for blob in (images / "blobs/sha256").iterdir():
        blob.unlink() if damage == "removed" else blob.write_bytes(blob.read_bytes()[:-1])
    if damage == "layout":
        subprocess.run(["rm", "-r", *map(str, (images / "layouts").iterdir())], check=True)
    image = await bed.runtime.pull(pinned, LINUX)
    assert (bed.runtime._images.rootfs(image.id) / "bin").is_dir()
