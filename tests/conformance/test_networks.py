"""`docker network`: making overlays, what is refused, and that networks are apart from each other and the world."""

from __future__ import annotations

from collections.abc import Callable

from .bed import Docker, Swarm, eventually, overlay_address, vip

Image = Callable[[str], str]
VNI = "com.docker.network.driver.overlay.vxlanid_list"


def test_create_ls_inspect_rm(docker: Docker, swarm: Swarm, image: Image) -> None:
    id = docker("network", "create", "-d", "overlay", "plain")
    assert len(id) == 25
    plain = docker.one("network", "inspect", "plain")
    assert (plain["Id"], plain["Scope"], plain["Driver"], plain["Internal"]) == (
        id,
        "swarm",
        "overlay",
        False,
    )
    [ipam] = plain["IPAM"]["Config"]
    assert ipam["Subnet"].endswith(".0/24") and ipam["Gateway"].startswith(ipam["Subnet"][:-4])
    assert int(plain["Options"][VNI]) >= 4096, "Windows hosts take no VNI below"

    docker(
        *("network", "create", "-d", "overlay", "--attachable", "--internal", "--label", "a=b"),
        *("--subnet", "10.77.0.0/16", "--gateway", "10.77.3.1", "--ip-range", "10.77.8.0/24"),
        *("--aux-address", "router=10.77.8.1"),
        *("--opt", f"{VNI}=7777", "chosen"),
    )
    chosen = docker.one("network", "inspect", "chosen")
    assert chosen["Internal"] and chosen["Attachable"] and chosen["Labels"] == {"a": "b"}
    assert chosen["Options"][VNI] == "7777"
    assert chosen["IPAM"]["Config"][0] == {
        "Subnet": "10.77.0.0/16",
        "IPRange": "10.77.8.0/24",
        "Gateway": "10.77.3.1",
        "AuxiliaryAddresses": {"router": "10.77.8.1"},
    }
    docker("service", "create", "-d", "--name", "ranged", "--network", "chosen", image("app:1"))
    [task] = swarm.running("ranged")
    assert overlay_address(task, "chosen").startswith("10.77.8."), "addresses come from the range"

    listed = docker.lines("network", "ls", "--filter", "scope=swarm", "--format", "{{.Name}} {{.Driver}}")
    assert {"ingress overlay", "plain overlay", "chosen overlay"} <= set(listed)
    assert docker("network", "ls", "-q", "--no-trunc", "-f", "label=a=b") == chosen["Id"]
    verbose = docker.one("network", "inspect", "-v", "chosen")
    assert verbose["Services"]["ranged"]["Tasks"][0]["EndpointIP"] == overlay_address(task, "chosen")
    host = swarm.host_of(task)
    there = docker.one("network", "inspect", "chosen", host=host)
    assert [c["Name"] for c in there["Containers"].values()] == [f"ranged.1.{task['ID']}"]

    words = docker.refused("network", "rm", "chosen")
    assert f"network {chosen['Id']} is in use by service " in words
    docker("service", "rm", "ranged")
    docker("network", "rm", "chosen", "plain")
    docker.refused("network", "inspect", "chosen")
    docker.refused("network", "rm", "chosen")
    assert swarm.refusal("GET", "/networks/chosen") == (404, "network chosen not found")


def test_several_subnets(anydocker: Docker, swarm: Swarm, image: Image, outside: str) -> None:
    """One full, tasks get addresses of the next; all reach each other, by name too, and the world."""
    docker = anydocker
    docker(
        *("network", "create", "-d", "overlay", "--subnet", "10.78.0.0/29", "--subnet", "10.79.0.0/24"),
        *("--gateway", "10.78.0.1", "--gateway", "10.79.0.254", "wide"),
    )
    assert docker.one("network", "inspect", "wide")["IPAM"]["Config"] == [
        {"Subnet": "10.78.0.0/29", "Gateway": "10.78.0.1"},
        {"Subnet": "10.79.0.0/24", "Gateway": "10.79.0.254"},
    ]
    docker(
        "service", "create", "-d", "--name", "wide", "--network", "wide", "--replicas", "6", image("app:1")
    )
    tasks = swarm.running("wide", 6)
    by_subnet: dict[str, list[dict[str, object]]] = {}
    for task in tasks:
        by_subnet.setdefault(overlay_address(task, "wide")[:5], []).append(task)
    assert set(by_subnet) == {"10.78", "10.79"}, "the small one holds five"
    low, high = by_subnet["10.78"][0], by_subnet["10.79"][0]
    for one, other in ((low, high), (high, low)):
        url = f"http://{overlay_address(other, 'wide')}/cgi-bin/who"
        eventually(lambda one=one, url=url: swarm.fetch(one, url, 1), f"{url} from the other subnet")
        eventually(lambda one=one: swarm.fetch(one, "http://wide/cgi-bin/who", 1), "by the service's name")
        assert swarm.inside(one, "ping -c 1 -W 2 10.79.0.254 && ping -c 1 -W 2 10.78.0.1"), "both gateways"
        said = eventually(lambda one=one: swarm.fetch(one, outside, 2), "the world")
        assert said.strip() == swarm.lab.host(swarm.host_of(one)).address


def test_both_families(docker: Docker, swarm: Swarm, image: Image) -> None:
    """A network with IPv6 beside IPv4: inspect, names, VIPs and real packets between hosts; tasks stay off Windows."""
    docker(
        *("network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd85::/64", "--gateway", "fd85::ff"),
        *("--ip-range", "fd85::1000/116", "dual"),
    )
    dual = docker.one("network", "inspect", "dual")
    four, six = dual["IPAM"]["Config"]
    assert dual["EnableIPv6"] and four["Subnet"].endswith(".0/24"), "an IPv4 one of the pool beside it"
    assert six == {"Subnet": "fd85::/64", "IPRange": "fd85::1000/116", "Gateway": "fd85::ff"}
    words = docker.refused("network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd85::/80", "more")
    assert "subnet fd85::/80 of network more overlaps subnet fd85::/64 of network dual" in words
    docker("network", "create", "-d", "overlay", "--ipv6", "given")
    own = docker.one("network", "inspect", "given")["IPAM"]["Config"][1]
    assert own["Subnet"].startswith("fd") and own["Gateway"] == own["Subnet"].replace("/64", "1")

    docker(
        *("service", "create", "-d", "--name", "dual", "--network", "dual", "--mode", "global"),
        *("--constraint", "node.platform.os==linux", image("app:1")),
    )
    one, other = swarm.running("dual", 2)
    addresses = {}
    for task in (one, other):
        [at] = task["NetworksAttachments"]
        v4, v6 = at["Addresses"]
        assert v6.startswith("fd85::1") and v6.endswith("/64"), "from the range"
        addresses[task["ID"]] = v6.split("/")[0]
        container = task["Status"]["ContainerStatus"]["ContainerID"]
        host = swarm.host_of(task)
        shown = docker.one("inspect", container, host=host)["NetworkSettings"]["Networks"]["dual"]
        assert (shown["IPAddress"], shown["GlobalIPv6Address"]) == (v4.split("/")[0], v6.split("/")[0])
        assert (shown["GlobalIPv6PrefixLen"], shown["IPv6Gateway"]) == (64, "fd85::ff")
        there = docker.one("network", "inspect", "dual", host=host)
        assert there["EnableIPv6"]
        assert there["Containers"][container]["IPv6Address"] == v6
    vips = [v["Addr"] for v in docker.one("service", "inspect", "dual")["Endpoint"]["VirtualIPs"]]
    assert len(vips) == 2 and ":" not in vips[0] and vips[1].startswith("fd85::1"), vips
    vip = vips[1].split("/")[0]

    far = addresses[other["ID"]]
    eventually(lambda: swarm.inside(one, f"ping -6 -c 1 -W 2 {far}"), "the other host's task")
    assert swarm.inside(one, "ping -6 -c 1 -W 2 fd85::ff"), "the gateway answers"
    assert far in swarm.inside(
        one, f"ping -6 -c 1 -W 2 {other['ID'] and 'dual.' + other['NodeID'] + '.' + other['ID']}"
    )
    said = swarm.inside(one, "nslookup -type=aaaa dual")
    assert vip in said and vips[0].split("/")[0] not in said
    assert far in swarm.inside(one, "nslookup -type=aaaa tasks.dual")
    assert "dual.dual" in swarm.inside(one, f"nslookup {vip}")
    for name in (f"[{far}]", f"[{vip}]"):
        eventually(lambda name=name: swarm.fetch(one, f"http://{name}/cgi-bin/who", 2), f"HTTP at {name}")
    hosts = set()
    eventually(
        lambda: (
            hosts.add(swarm.fetch(one, f"http://[{vip}]/cgi-bin/who", 2).split('"host": "')[1][:12])
            or len(hosts) == 2
        ),
        "the VIP leads to both tasks",
    )
    client = swarm.fetch(one, f"http://[{far}]/cgi-bin/who", 2)
    last = addresses[one["ID"]].rpartition(":")[2]  # what the page makes of an IPv6 address
    assert f'"client": "{last}"' in client, "its own address arrives"

    said = docker.said("service", "create", "-d", "--name", "halfway", "--network", "dual", image("win:1"))
    assert "its tasks get IPv4 addresses only" in said, "Windows hosts have no IPv6"
    [half] = swarm.running("halfway")
    [dual] = half["NetworksAttachments"]
    assert len(dual["Addresses"]) == 1 and ":" not in dual["Addresses"][0]
    eventually(
        lambda: '"platform": "windows"' in swarm.fetch(one, "http://halfway/cgi-bin/who", 2),
        "its name leads to IPv4",
    )


def test_a_network_that_fills_up(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    """It says so before tasks have to wait: in inspect, as an event, in `docker info`; and waiting tasks say why."""
    docker = anydocker
    docker("network", "create", "-d", "overlay", "--subnet", "10.83.0.0/28", "tight")
    with docker.following("events", "--filter", "type=network", "--format", "{{json .Actor}}") as events:
        eventually(
            lambda: docker.json("info", "--format", "{{json .}}")["NEventsListener"], "the CLI listens"
        )
        docker(
            "service",
            "create",
            "-d",
            "--name",
            "many",
            "--network",
            "tight",
            "--replicas",
            "9",
            image("app:1"),
        )
        events.wait_for(lambda line: '"name":"tight"' in line and '"warning":' in line, "a warning as event")
    [found] = swarm.get("/networks", name=["tight"])
    assert "80 % or more of its 13 addresses are in use" in found["Warning"]
    assert f"WARNING: network tight: {found['Warning']}" in docker.said("info")
    docker("service", "scale", "-d", "many=20")
    swarm.pending("many", "no address left for task many.")
    docker("service", "scale", "-d", "many=1")
    eventually(lambda: "Warning" not in swarm.get("/networks/tight"), "the warning goes")
    swarm.running("many", 1)


def test_refusals(docker: Docker, swarm: Swarm) -> None:
    docker("network", "create", "-d", "overlay", "--subnet", "10.80.0.0/16", "--opt", f"{VNI}=5000", "first")
    create = ("network", "create", "-d", "overlay")
    for options, words in (
        (("first",), "network with name first already exists"),
        (
            ("--subnet", "10.80.7.0/24", "second"),
            "subnet 10.80.7.0/24 of network second overlaps subnet 10.80.0.0/16",
        ),
        (("--subnet", "10.0.0.0/8", "second"), "Pool overlaps with other one on this address space"),
        (("--subnet", "10.81.0.5/24", "second"), "10.81.0.0/24"),
        (
            ("--subnet", "10.81.0.0/24", "--gateway", "10.82.0.1", "second"),
            "gateway 10.82.0.1",
        ),
        (("--opt", f"{VNI}=4095", "second"), "Windows hosts need 4096 or more"),
        (("--opt", f"{VNI}=100", "second"), "Windows hosts need 4096 or more"),
        (("--opt", f"{VNI}=16777216", "second"), "16777214 is the largest there is"),
        (("--opt", f"{VNI}=5000", "second"), "VNI 5000 is network first's"),
        (("--opt", "nosuch=1", "second"), "nosuch"),
        (("--subnet", "fd81::/64", "second"), "the network has no IPv6; create it with --ipv6"),
        (("--ipv6", "--subnet", "fd81::7/64", "second"), "invalid subnet fd81::7/64: it should be fd81::/64"),
        (("--ipv6", "--subnet", "fd81::/64", "--gateway", "fd82::1", "second"), "gateway fd82::1"),
        (("--ipv6", "--ingress", "second"), "is already present"),
        (("--ingress", "second"), "is already present"),
        (("--ingress", "--attachable", "second"), "ingress network cannot be attachable"),
        (("bad name",), "name must be valid as a DNS name component"),
    ):
        said = docker.refused(*create, *options)
        assert words in said, f"{options}: {said}"
    assert "not permitted on predefined host network" in docker.refused(*create, "host")
    assert not swarm.get("/networks", name=["second"]), "nothing half-made is left"
    assert "ambiguous" not in docker("network", "inspect", "first")


def test_ingress_is_there_and_kept(docker: Docker, swarm: Swarm, image: Image) -> None:
    ingress = docker.one("network", "inspect", "ingress")
    assert ingress["Ingress"] and ingress["IPAM"]["Config"][0]["Subnet"] == "10.0.0.0/24"
    docker("service", "create", "-d", "--name", "open", "-p", "8701:80", "--replicas", "0", image("app:1"))
    words = docker.refused("network", "rm", "ingress", stdin="y\n")
    assert "ingress network cannot be removed because service " in words


def test_networks_are_apart(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    docker = anydocker
    for net in ("left", "right"):
        docker("network", "create", "-d", "overlay", net)
        docker(
            "service",
            "create",
            "-d",
            "--name",
            f"in-{net}",
            "--network",
            net,
            "--mode",
            "global",
            image("app:1"),
        )
    docker(
        "service", "create", "-d", "--name", "both", "--network", "left", "--network", "right", image("app:1")
    )
    left = swarm.where("in-left", 2)["linux-1"][0]
    rights = swarm.running("in-right", 2)
    [both] = swarm.running("both")
    eventually(lambda: swarm.fetch(both, "http://in-left/cgi-bin/who", 1), "both reaches left by name")
    eventually(lambda: swarm.fetch(both, "http://in-right/cgi-bin/who", 1), "both reaches right by name")
    eventually(lambda: swarm.fetch(left, "http://in-left/cgi-bin/who", 1), "left reaches left")
    assert swarm.resolve(left, "in-right") == set(), "no name of a network it is not on"
    vip = swarm.resolve(both, "in-right").pop()
    for address in (
        vip,
        *(overlay_address(task, "right") for task in rights),
        overlay_address(both, "right"),
    ):
        assert swarm.fetch(left, f"http://{address}/cgi-bin/who", 1) == "", f"left reached {address} of right"
    # nor does a stranger who routes the overlay's addresses by way of a host
    [right] = [task for task in rights if swarm.host_of(task) == "linux-2"]
    target = f"http://{overlay_address(right, 'right')}/cgi-bin/who"
    assert swarm.curl(target, host="linux-2"), "a host reaches its own containers: it owns them"
    route = ("10.0.0.0/8", "via", swarm.lab.host("linux-2").address)
    swarm.lab.exec("client", "ip", "route", "add", *route)
    try:
        assert swarm.curl(target, seconds=1) == "", "a host forwarded a stranger's packet into an overlay"
    finally:
        swarm.lab.exec("client", "ip", "route", "del", *route)


def test_the_way_out_and_none(anydocker: Docker, swarm: Swarm, image: Image, outside: str) -> None:
    """Outbound traffic is translated to its host's address; an internal network has no way out."""
    docker = anydocker
    docker("network", "create", "-d", "overlay", "outgoing")
    docker("network", "create", "-d", "overlay", "--internal", "inside")
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "goes",
        "--network",
        "outgoing",
        "--mode",
        "global",
        image("multi:1"),
    )
    docker(
        "service",
        "create",
        "-d",
        "--name",
        "stays",
        "--network",
        "inside",
        "--mode",
        "global",
        image("multi:1"),
    )
    docker("service", "create", "-d", "--name", "default", image("app:1"))
    for host, [task] in swarm.where("goes", 3).items():
        said = eventually(lambda task=task: swarm.fetch(task, outside, 2), f"{host} reaches the world")
        assert said.strip() == swarm.lab.host(host).address, "the world sees the host's address"
    [task] = swarm.running("default")
    said = eventually(
        lambda: swarm.fetch(task, outside, 2), "a service with no network of its own reaches the world"
    )
    assert said.strip() == swarm.lab.host(swarm.host_of(task)).address
    stays = swarm.where("stays", 3)
    eventually(
        lambda: swarm.fetch(stays["linux-1"][0], "http://stays/cgi-bin/who", 1),
        "inside, they reach each other",
    )
    for host, [task] in stays.items():
        assert swarm.fetch(task, outside, 1) == "", f"{host}: an internal network let a packet out"
        peer = swarm.lab.host("linux-1" if host == "linux-2" else "linux-2").address
        said = swarm.inside(task, f"nc -w 1 {peer} 2377 </dev/null && echo open", check=False)
        assert "open" not in said, "nor to the hosts"


def test_networks_made_from_a_configuration(docker: Docker, swarm: Swarm, image: Image) -> None:
    settings = (
        "--subnet",
        "10.84.0.0/24",
        "--label",
        "by=settings",
        "--opt",
        "com.docker.network.driver.mtu=1350",
    )
    docker("network", "create", "--config-only", *settings, "settings")
    found = docker.one("network", "inspect", "settings")
    assert found["ConfigOnly"] and found["Driver"] == "null" and VNI not in found["Options"], (
        "it is no network"
    )
    docker("network", "create", "-d", "overlay", "--attachable", "--config-from", "settings", "made")
    made = docker.one("network", "inspect", "made")
    assert made["ConfigFrom"] == {"Network": "settings"} and made["Attachable"] and not made["ConfigOnly"]
    assert made["IPAM"]["Config"] == [{"Subnet": "10.84.0.0/24", "Gateway": "10.84.0.1"}]
    assert made["Labels"] == {"by": "settings"} and made["Options"]["com.docker.network.driver.mtu"] == "1350"
    docker("service", "create", "-d", "--name", "configured", "--network", "made", image("app:1"))
    [task] = swarm.running("configured")
    assert overlay_address(task, "made").startswith("10.84.0.")

    create = ("network", "create", "-d", "overlay")
    for options, words in (
        (
            ("--config-from", "settings", "--label", "a=b", "x"),
            "user specified configurations are not supported",
        ),
        (("--config-from", "made", "x"), "made is not a configuration only network"),
        (("--config-from", "nosuch", "x"), "network nosuch not found"),
        (("--config-from", "settings", "x"), "overlaps subnet 10.84.0.0/24 of network made"),
        (("--config-only", "--attachable", "x"), "can only contain network specific fields"),
    ):
        said = docker.refused(*create, *options)
        assert words in said, f"{options}: {said}"
    assert "is in use" in docker.refused("network", "rm", "settings")
    words = docker.refused("service", "create", "-d", "--network", "settings", image("app:1"))
    assert "configuration network" in words
    docker("network", "prune", "-f")
    assert docker("network", "ls", "-q", "-f", "name=settings"), "settings are not litter"
    docker("service", "rm", "configured")
    docker("network", "rm", "made", "settings")


def test_hosts_own_processes_reach_a_network_that_says_so(
    anydocker: Docker, swarm: Swarm, image: Image
) -> None:
    wish = {"Name": "lan", "Driver": "overlay", "Options": {"overlace.host-access": "true"}}
    made = swarm.call("POST", "/networks/create", wish)  # the CLI prints no warning
    assert "overlace.host-access does nothing on Windows hosts: windows-1" in made["Warning"]
    try:
        anydocker(
            *("service", "create", "-d", "--network", "lan", "--name", "reached", "--mode", "global"),
            *("--hostname", "{{.Node.Hostname}}", image("multi:1")),
        )
        where = swarm.where("reached", 3)
        address = vip(swarm.get("/services/reached"), swarm.get("/networks/lan")["Id"])
        for host in ("linux-1", "linux-2"):
            found = {
                str(swarm.answers(f"http://{address}/cgi-bin/who", host=host)["host"]) for _ in range(30)
            }
            assert found == set(where), f"{host} reaches every task through the VIP"
            for other, [task] in where.items():
                at = overlay_address(task, "lan")
                assert swarm.answers(f"http://{at}/cgi-bin/who", host=host)["host"] == other
        assert not swarm.curl(f"http://{address}/cgi-bin/who", host="windows-1", seconds=1)
    finally:
        anydocker.run("service", "rm", "reached")
        eventually(lambda: anydocker.run("network", "rm", "lan").returncode == 0, "lan is removed")
    for host in ("linux-1", "linux-2"):
        eventually(
            lambda host=host: " oh" not in swarm.lab.exec(host, "ip", "-o", "link").stdout, "nothing is left"
        )
