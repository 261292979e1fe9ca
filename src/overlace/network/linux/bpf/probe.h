/* SPDX-License-Identifier: Apache-2.0 */
/* Measuring the path to another host with the packets containers' traffic is made of: same device, same encapsulation,
 * same UDP port, a network number no network has. The daemon sends from and receives on 127.0.0.1; network/linux/probe.py
 * packs the same message. An echo is answered here, by the other host's program, so that it says something about the
 * path and not about the daemon at its end; a check goes through that host's stack, which verifies its checksum. */
#pragma once
#include "packet.h"

#define PROBE_VNI 0xffffff
#define PROBE_MAGIC 0x6f76

enum probe_kind { PROBE_ECHO = 1, PROBE_ECHOED, PROBE_CHECK, PROBE_CHECKED };

/* PROBE_SLOW: through the kernel's vxlan device. PROBE_BY_PORT: from an ordinary socket, on a host whose switch has no
 * program of ours (network/windows/probe.py): the answer goes to the UDP port the question came from. */
enum probe_how { PROBE_PROGRAM, PROBE_SLOW, PROBE_BY_PORT };

struct probe {
	__be16 magic;
	__u8 kind;
	__u8 how; /* enum probe_how */
	host_t source, target; /* underlay addresses of who sends and who is meant */
	__be32 length; /* of the outer IP packet of the question */
	__u64 nonce;
};

struct prober {
	__be16 port; /* the daemon's, on 127.0.0.1; 0: it is away */
	__u16 pad;
};

MAP(BPF_MAP_TYPE_ARRAY, prober_of, __u32, struct prober, 1, 0);

/* The outer headers of a probe of `length` bytes, but the first of them: UDP to inner Ethernet. */
INLINE void probe_outer(struct outer *o, const struct config *cfg, const struct probe *probe, __u32 length)
{
	o->sport = bpf_htons(32768 | ((__u32)probe->nonce & 0x7fff)); /* another each time: every way of a bundle is tried */
	o->dport = cfg->vxlan_port;
	o->udp_len = bpf_htons(length - OUTER_HEAD);
	o->flags = bpf_htonl(VXLAN_HAS_VNI);
	o->vni = bpf_htonl(PROBE_VNI << 8);
	o->eth.proto = bpf_htons(ETH_IPV4);
}

/* The inner packet is of IPv4 whatever the hosts have: what it calls the other host counts in its checksum alone. */
INLINE __be32 probe_name(const struct config *cfg, host_t host)
{
#ifdef OVERLACE_OVER_IPV6
	return cfg->underlay_addr;
#else
	return host;
#endif
}

/* The daemon's question or answer, from lo: into the tunnel, to the host it names. */
NOINLINE int probe_out(struct __sk_buff *ctx, struct pkt *p)
{
	struct config *cfg = settings();
	OUTER_ROOM(o);
	struct flow names = {};
	struct probe probe;
	__u32 length = ctx->len - ETH_LEN + VXLAN_PUSH;

	if (!cfg || !p || length > 0xffff || bpf_skb_load_bytes(ctx, p->l4 + 8, &probe, sizeof(probe)) ||
	    probe.magic != bpf_htons(PROBE_MAGIC))
		return TC_ACT_SHOT;
	names.saddr = cfg->underlay_addr;
	names.daddr = probe_name(cfg, probe.target);
	names.sport = p->sport;
	names.dport = p->dport;
	if (translate(ctx, p, &names))
		return TC_ACT_SHOT;
	if (probe.how == PROBE_SLOW) {
		struct hop hop = { .vni = PROBE_VNI, .provider = probe.target };

		return slow_path(ctx, &hop);
	}
	write_outer((void *)o, cfg, probe.target, length, 0, 1, probe.nonce);
	probe_outer(o, cfg, &probe, length);
	if (bpf_skb_adjust_room(ctx, VXLAN_PUSH, BPF_ADJ_ROOM_MAC, PUSH_FLAGS) ||
	    bpf_skb_store_bytes(ctx, ETH_LEN, o, sizeof(*o), 0))
		return TC_ACT_SHOT;
	return to_host_at(cfg, probe.target);
}

#define PROBE_INNER (ETH_LEN + VXLAN_PUSH) /* where the inner IP header is */

/* Turn the question into a short answer, in place, and send it back. The caller has looked at it. */
NOINLINE int probe_echo(struct __sk_buff *ctx)
{
	const __u32 inner = IP_LEN + 8 + sizeof(struct probe), whole = inner + VXLAN_PUSH;
	OUTER_ROOM(o);
	struct config *cfg = settings();
	struct probe probe;
	struct {
		__be16 sport, dport, length, sum;
	} udp = {};
	struct ip ip = {};
	__be16 port = 0;
	host_t asker;

	if (!cfg || bpf_skb_load_bytes(ctx, PROBE_INNER + IP_LEN + 8, &probe, sizeof(probe)) ||
	    bpf_skb_load_bytes(ctx, ETH_LEN + OUTER_HEAD, &port, sizeof(port)))
		return TC_ACT_SHOT;
	/* Shorten it at the front, where all is written anew: bpf_skb_change_tail refuses frames whose tunnel the sender's
	 * kernel has marked. At most 4095 bytes go at a time. */
	for (int i = 0; i < 4; i++) {
		__u32 more = ctx->len - (ETH_LEN + whole);

		if (ctx->len <= ETH_LEN + whole)
			break;
		if (bpf_skb_adjust_room(ctx, -(__s32)(more > 4000 ? 4000 : more), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
			return TC_ACT_SHOT;
	}
	asker = probe.source;
	probe.source = own_host(cfg);
	probe.target = asker;
	probe.kind = PROBE_ECHOED;
	udp.sport = udp.dport = cfg->vxlan_port; /* the other program puts its daemon's in */
	udp.length = bpf_htons(inner - IP_LEN);
	ip.version_ihl = 0x45;
	ip.length = bpf_htons(inner);
	ip.frag = bpf_htons(0x4000);
	ip.ttl = 64;
	ip.proto = PROTO_UDP;
	ip.saddr = cfg->underlay_addr;
	ip.daddr = probe_name(cfg, asker);
	seal_ip(&ip);
	write_outer((void *)o, cfg, asker, whole, 0, 1, probe.nonce);
	probe_outer(o, cfg, &probe, whole);
	if (probe.how == PROBE_BY_PORT) {
		o->sport = cfg->vxlan_port; /* as a firewall on its way expects an answer */
		o->dport = port;
	}
	if (bpf_skb_store_bytes(ctx, ETH_LEN, o, sizeof(*o), 0) ||
	    bpf_skb_store_bytes(ctx, PROBE_INNER, &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(ctx, PROBE_INNER + IP_LEN, &udp, sizeof(udp), 0) ||
	    bpf_skb_store_bytes(ctx, PROBE_INNER + IP_LEN + 8, &probe, sizeof(probe), 0))
		return TC_ACT_SHOT;
	return to_host_at(cfg, asker);
}

/* One field of the IP header (`at`) or the UDP header after it, checksums kept true or false as they were. */
INLINE int probe_rename(struct __sk_buff *ctx, __u32 at, __be32 from, __be32 to)
{
	return bpf_l4_csum_replace(ctx, ETH_LEN + IP_LEN + 6, from, to, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | 4) ||
	       bpf_l3_csum_replace(ctx, ETH_LEN + 10, from, to, 4) || bpf_skb_store_bytes(ctx, ETH_LEN + at, &to, 4, 0);
}

/* Give it to the daemon, tunnel off; the host's stack verifies its checksum, as a container's would. */
NOINLINE int probe_deliver(struct __sk_buff *ctx, __s32 base)
{
	const __be32 loopback = bpf_htonl(0x7f000001);
	struct config *cfg = settings();
	struct eth lo = { .proto = bpf_htons(ETH_IPV4) };
	struct prober *prober;
	__be32 names[2];
	__be16 port, mine;
	__u32 zero = 0;

	prober = bpf_map_lookup_elem(&prober_of, &zero);
	if (!cfg || !prober || !prober->port)
		return TC_ACT_SHOT;
	mine = prober->port;
	if (base && bpf_skb_adjust_room(ctx, -VXLAN_PUSH, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | INNER_PROTOCOL))
		return MAY_NOT_POP ? TC_ACT_UNSPEC : TC_ACT_SHOT; /* the vxlan device can: probe_from_vxlan() */
	if (bpf_skb_load_bytes(ctx, ETH_LEN + 12, names, sizeof(names)) ||
	    bpf_skb_load_bytes(ctx, ETH_LEN + IP_LEN + 2, &port, 2) ||
	    probe_rename(ctx, 12, names[0], loopback) || probe_rename(ctx, 16, names[1], loopback) ||
	    bpf_l4_csum_replace(ctx, ETH_LEN + IP_LEN + 6, port, mine, BPF_F_MARK_MANGLED_0 | 2) ||
	    bpf_skb_store_bytes(ctx, ETH_LEN + IP_LEN + 2, &mine, 2, 0) ||
	    bpf_skb_store_bytes(ctx, 0, &lo, sizeof(lo), 0))
		return TC_ACT_SHOT;
	bpf_skb_change_type(ctx, HOST_PACKET);
	return bpf_redirect(cfg->lo_ifindex, BPF_F_INGRESS);
}

/* A probe from the tunnel with `base` bytes of it still in front: echoes are answered, everything else is the daemon's. */
INLINE int probe_in(struct __sk_buff *ctx, const host_t *provider, const __u32 base)
{
	struct config *cfg = settings();
	struct probe probe;
	__u8 version, proto;

	if (!cfg || !provider || bpf_skb_load_bytes(ctx, ETH_LEN + base, &version, 1) || version != 0x45 ||
	    bpf_skb_load_bytes(ctx, ETH_LEN + base + 9, &proto, 1) || proto != PROTO_UDP)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(ctx, ETH_LEN + base + IP_LEN + 8, &probe, sizeof(probe)) ||
	    probe.magic != bpf_htons(PROBE_MAGIC) || !same_host(probe.target, own_host(cfg)) ||
	    !same_host(probe.source, *provider)) /* answers go to who asked, to nobody else */
		return TC_ACT_SHOT;
	if (probe.kind == PROBE_ECHO)
		return base ? probe_echo(ctx) : TC_ACT_SHOT;
	return probe_deliver(ctx, base);
}

NOINLINE int probe_from_tunnel(struct __sk_buff *ctx, const host_t *provider)
{
	return probe_in(ctx, provider, VXLAN_PUSH);
}

NOINLINE int probe_from_vxlan(struct __sk_buff *ctx, const host_t *provider)
{
	return probe_in(ctx, provider, 0);
}
