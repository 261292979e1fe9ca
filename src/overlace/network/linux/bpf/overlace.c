// SPDX-License-Identifier: Apache-2.0
/* The data path's programs, one per kind of interface:
 *   from_container  ingress of the host side of a container's veth
 *   from_underlay   ingress of the interface that carries the underlay address
 *   from_vxlan      ingress of the kernel's vxlan device (slow path)
 *   from_host       ingress of lo: the host's own connections to published ports
 * Packets that are not ours go on to the next program (TC_ACT_UNSPEC). */
#include "answer.h"
#include "flow.h"
#include "flood.h"
#include "probe.h"
#include "way.h"

char LICENSE[] SEC("license") = "GPL";

/* Send to the endpoint `to` of network `vni`, translated by `nat` if given. */
NOINLINE int forward(struct __sk_buff *ctx, struct pkt *p, __u32 vni, __be32 to, struct flow *nat)
{
	struct config *cfg = settings();
	struct endpoint *e = endpoint_of(vni, to);

	if (!cfg || !p)
		return drop(ctx, R_DROP_ERROR);
	if (!e)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (e->kind == K_REMOTE) {
		struct hop hop = { .vni = vni, .provider = e->provider };
		__u32 mtu = path_mtu(cfg, hop.provider);
		int big = too_big(ctx, mtu, p);

		if (big && p->df)
			return answer_too_big(ctx, p, mtu);
		copy_mac(hop.dst, e->mac);
		if (nat) {
			struct network *net = bpf_map_lookup_elem(&networks, &vni);

			if (!net)
				return drop(ctx, R_DROP_NO_ENDPOINT);
			copy_mac(hop.src, net->gateway_mac);
			if (translate(ctx, p, nat))
				return drop(ctx, R_DROP_ERROR);
		} else if (bpf_skb_load_bytes(ctx, 6, hop.src, 6)) {
			return drop(ctx, R_DROP_ERROR);
		}
		if (!big)
			remember(p, W_ENCAPSULATE, 0, &hop);
		return encapsulate(ctx, p, &hop, big);
	}
	if (e->kind != K_LOCAL)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (nat) {
		if (translate(ctx, p, nat))
			return drop(ctx, R_DROP_ERROR);
	} else {
		struct flow *f = flow_of(vni, p);

		if (f && f->kind == F_REPLY && translate(ctx, p, f))
			return drop(ctx, R_DROP_ERROR);
	}
	return deliver(ctx, p, e);
}

/* A backend's answer to a client that is not where the backend answered to: give it the frontend's name. */
NOINLINE int reply(struct __sk_buff *ctx, struct pkt *p, struct flow *f)
{
	struct config *cfg = settings();
	struct endpoint *e;

	if (!cfg || !p || !f || translate(ctx, p, f))
		return drop(ctx, R_DROP_ERROR);
	if (f->out == OUT_UNDERLAY) {
		remember(p, W_UNDERLAY, 0, 0);
		return to_underlay(ctx, cfg, f->daddr, R_TO_UNDERLAY);
	}
	if (f->out == OUT_HOST) {
		remember(p, W_LOOPBACK, 0, 0);
		return to_loopback(ctx, cfg);
	}
	e = endpoint_of(f->vni, f->daddr);
	if (!e || e->kind != K_LOCAL)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	return deliver(ctx, p, e);
}

/* To the host that has the destination's whole subnet, whose router takes it from there. */
NOINLINE int along(struct __sk_buff *ctx, struct pkt *p, struct route *r)
{
	struct config *cfg = settings();
	struct hop hop;
	__u32 mtu;
	int big;

	if (!cfg || !p || !r || bpf_skb_load_bytes(ctx, 6, hop.src, 6))
		return drop(ctx, R_DROP_ERROR);
	hop.vni = r->vni;
	hop.provider = r->provider;
	copy_mac(hop.dst, r->mac);
	mtu = path_mtu(cfg, hop.provider);
	big = too_big(ctx, mtu, p);
	if (big && p->df)
		return answer_too_big(ctx, p, mtu);
	if (!big)
		remember(p, W_ENCAPSULATE, 0, &hop);
	return encapsulate(ctx, p, &hop, big);
}

/* A container's answer to a client that came in through another host goes out there, too. */
NOINLINE int back_through(struct __sk_buff *ctx, struct pkt *p, struct flow *f)
{
	struct config *cfg = settings();
	struct network *net;
	struct endpoint *e;
	struct hop hop;
	__u32 mtu;
	int big;

	if (!cfg || !p || !f)
		return drop(ctx, R_DROP_ERROR);
	hop.vni = f->vni;
	hop.provider = f->provider;
	net = bpf_map_lookup_elem(&networks, &hop.vni);
	e = endpoint_of(hop.vni, f->saddr);
	mtu = path_mtu(cfg, hop.provider);
	big = too_big(ctx, mtu, p);
	if (!net || !e)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	copy_mac(hop.src, e->mac);
	copy_mac(hop.dst, net->gateway_mac);
	if (big && p->df)
		return answer_too_big(ctx, p, mtu);
	if (translate(ctx, p, f))
		return drop(ctx, R_DROP_ERROR);
	if (!big)
		remember(p, W_ENCAPSULATE, 0, &hop);
	return encapsulate(ctx, p, &hop, big);
}

/* Do with the packet what balance() said. An ICMP error follows the connection it is about. */
NOINLINE int balanced(struct __sk_buff *ctx, struct pkt *p, struct question *q)
{
	struct flow f = {}, *known;

	if (!p || !q)
		return drop(ctx, R_DROP_ERROR);
	if (p->error) {
		known = flow_of(q->scope, p);
		if (!known || known->kind != F_FORWARD)
			return q->scope ? drop(ctx, R_DROP_NO_ENDPOINT) : TC_ACT_UNSPEC;
		f = *known;
		return forward(ctx, p, f.vni, f.daddr, &f);
	}
	switch (balance(p, q, &f)) {
	case B_GO:
		return forward(ctx, p, f.vni, f.daddr, &f);
	case B_PASS:
		return TC_ACT_UNSPEC;
	case B_REFUSE:
		return refuse(ctx, p);
	}
	return drop(ctx, R_DROP_ERROR);
}

/* A container's packet to an address outside its network, or with the source of another of its interfaces. MISS: it is
 * for a published port of this very host. */
NOINLINE int leave_overlay(struct __sk_buff *ctx, struct pkt *p, struct port *port, __u32 foreign)
{
	struct config *cfg = settings();
	struct flow *f;
	int host;

	if (!cfg || !p || !port)
		return drop(ctx, R_DROP_ERROR);

	struct flow_key key = { .scope = SCOPE_SANDBOX, .saddr = port->sandbox, .sport = p->sport, .dport = p->dport };

	key.daddr = p->daddr;
	key.proto = p->error ? p->error_proto : p->proto;
	f = bpf_map_lookup_elem(&flows, &key);
	if (f)
		return f->kind == F_REPLY ? reply(ctx, p, f) : back_through(ctx, p, f);
	if (foreign)
		return drop(ctx, R_DROP_SPOOFED);
	if ((port->flags & PORT_FILTERED) && !admitted(p, port, ctx->ifindex, GOES_OUT))
		return drop(ctx, R_DROP_POLICY);
	if (is_overlay(p->daddr))
		return drop(ctx, R_DROP_ISOLATION);
	if ((p->daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || p->daddr == 0xffffffff)
		return drop(ctx, R_DROP_UNSUPPORTED);
	if (p->proto == PROTO_UDP && p->dport == cfg->vxlan_port)
		return drop(ctx, R_DROP_ISOLATION); /* translated, it would look like tunnel traffic of this host */
	host = (port->flags & PORT_HOST) && p->daddr == cfg->underlay_addr;
	if (!host && (!(port->flags & PORT_OUTBOUND) || (p->daddr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000)))
		return drop(ctx, R_DROP_NO_OUTBOUND);
	if (frontend_of(0, p->daddr, p->dport, p->proto))
		return MISS;

	struct exception_key except = { .prefix = 64, .list = port->exceptions, .to = p->daddr };

	__u32 *to = bpf_map_lookup_elem(&exceptions, &except);

	if (!host && to && *to == NAT_NEVER)
		return drop(ctx, R_DROP_NO_OUTBOUND);
	remember(p, W_TO_HOST, 0, 0);
	return to_host(ctx);
}

/* By an SDN route of the port to another endpoint, or to the host. MISS: no such route. */
NOINLINE int by_own_route(struct __sk_buff *ctx, struct pkt *p, const struct port *port)
{
	struct route *r;
	__be32 hop;

	if (!p || !port || !port->routes)
		return MISS;
	r = route_of(port->routes, p->daddr);
	if (!r)
		return MISS;
	hop = r->hop;
	if ((port->flags & PORT_FILTERED) && !admitted(p, port, ctx->ifindex, GOES_OUT))
		return drop(ctx, R_DROP_POLICY);
	if (hop != HOP_HOST)
		return forward(ctx, p, port->vni, hop, 0);
	remember(p, W_TO_HOST, 0, 0);
	return to_host(ctx);
}

/* All of from_container for a packet that no unified flow took. */
NOINLINE int walk_from_container(struct __sk_buff *ctx, __u32 generation)
{
	__u32 ifindex = ctx->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	struct endpoint *e;
	struct network *net;
	struct pkt p = {};
	struct eth eth;
	__u32 vni, bad, own;

	if (!port)
		return drop(ctx, R_DROP_NO_PORT);
	vni = port->vni;
	if (bpf_skb_load_bytes(ctx, 0, &eth, sizeof(eth)))
		return drop(ctx, R_DROP_GARBAGE);
	if (!same_mac(eth.src, port->mac))
		return drop(ctx, R_DROP_SPOOFED);
	if (eth.proto == bpf_htons(ETH_ARP))
		return answer_arp(ctx, port);
	if ((port->flags & PORT_METERED) && over_limit(ctx))
		return drop(ctx, R_DROP_RATE);
	if (eth.proto != bpf_htons(ETH_IP))
		return drop(ctx, R_DROP_UNSUPPORTED);
	bad = parse(ctx, ETH_LEN, vni, &p);
	if (bad)
		return drop(ctx, bad);
	net = bpf_map_lookup_elem(&networks, &vni);
	if (!net)
		return drop(ctx, R_DROP_UNKNOWN_VNI);
	p.origin = FROM_CONTAINER;
	p.complain = net->gateway;
	came(&p, ifindex, generation);
	copy_mac(p.own, eth.src);
	p.metered = (port->flags & PORT_METERED) != 0;
	own = p.saddr == port->addr;
	if (own && is_flooded(net, vni, p.daddr)) {
		if ((port->flags & PORT_FILTERED) && !admitted(&p, port, ifindex, GOES_OUT))
			return drop(ctx, R_DROP_POLICY);
		if (over_flood_rate(vni))
			return drop(ctx, R_DROP_FLOOD);
		return flood(ctx, &p, vni, p.saddr, 1);
	}
	if (!own) {
		e = router_of(vni, p.saddr);
		own = e && e->kind == K_LOCAL && e->ifindex == ifindex;
	}
	e = own ? endpoint_of(vni, p.daddr) : 0;
	if (!e && own) {
		struct route *r;
		int taken = by_own_route(ctx, &p, port);

		if (taken != MISS)
			return taken;
		r = route_of(vni, p.daddr);
		if (r) {
			if ((port->flags & PORT_FILTERED) && !admitted(&p, port, ifindex, GOES_OUT))
				return drop(ctx, R_DROP_POLICY);
			return along(ctx, &p, r);
		}
	}
	if (!e) {
		int taken = leave_overlay(ctx, &p, port, !own);
		struct config *cfg = settings();
		struct question q = { .client_vni = vni, .front = p.daddr };

		if (taken != MISS || !cfg)
			return taken;
		p.complain = p.daddr;
		q.source = cfg->underlay_addr;
		return balanced(ctx, &p, &q);
	}
	if ((port->flags & PORT_FILTERED) && !admitted(&p, port, ifindex, GOES_OUT))
		return drop(ctx, R_DROP_POLICY);
	if (e->kind == K_LOCAL || e->kind == K_REMOTE)
		return forward(ctx, &p, vni, p.daddr, 0);
	if (p.proto == PROTO_ICMP && !p.error) {
		if (p.icmp_type == 8 && !p.fragment)
			return answer_echo(ctx, &p);
		return drop(ctx, R_DROP_UNSUPPORTED);
	}
	if (e->kind == K_VIP) {
		p.complain = p.daddr;
		struct question q = { .scope = vni, .client_vni = vni, .front = p.daddr, .source = p.saddr };

		return balanced(ctx, &p, &q);
	}
	struct flow *f = flow_of(vni, &p); /* the gateway's name stands for the client in a hairpin */

	if (f && f->kind == F_REPLY)
		return reply(ctx, &p, f);
	return refuse(ctx, &p);
}

SEC("tc")
int from_container(struct __sk_buff *ctx)
{
	__u32 generation = current_generation();
	int taken = again_from_container(ctx, generation);

	return taken == MISS ? walk_from_container(ctx, generation) : taken;
}

/* A frame of network `vni` from host `provider`, with `base` bytes of tunnel still in front of it. */
INLINE int inbound(struct __sk_buff *ctx, __u32 vni, __be32 provider, __u8 tos, const __u32 base, __u32 generation)
{
	struct network *net = bpf_map_lookup_elem(&networks, &vni);
	struct endpoint *e;
	struct pkt p = {};
	struct eth eth;
	struct flow f = {}, *known;
	struct route *r;
	__u32 bad, outside = 0, renamed = 0;

	if (!net || (net->flags & NET_LOCAL))
		return drop(ctx, R_DROP_UNKNOWN_VNI);
	if (bpf_skb_load_bytes(ctx, base, &eth, sizeof(eth)))
		return drop(ctx, R_DROP_GARBAGE);
	if (eth.proto != bpf_htons(ETH_IP))
		return drop(ctx, R_DROP_UNSUPPORTED);
	bad = parse(ctx, base + ETH_LEN, vni, &p);
	if (bad)
		return drop(ctx, bad);
	came(&p, AT_TUNNEL | vni, generation);
	p.from = provider;
	e = endpoint_of(vni, p.saddr);
	if (e) {
		if (e->kind != K_REMOTE || e->provider != provider)
			return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else if ((r = route_of(vni, p.saddr))) {
		if (r->provider != provider)
			return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else if ((e = router_of(vni, p.saddr))) {
		if (e->kind != K_REMOTE || e->provider != provider)
			return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else if (!(net->flags & NET_INGRESS) || is_overlay(p.saddr)) {
		return drop(ctx, R_DROP_WRONG_PROVIDER);
	} else {
		outside = 1;
	}
	if (!outside && is_flooded(net, vni, p.daddr)) {
		if (base) {
			if (pop_tunnel(ctx, tos) || bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
				return drop(ctx, R_DROP_ERROR);
			p.l3 -= base;
			p.l4 -= base;
		}
		return flood(ctx, &p, vni, p.saddr, 0);
	}
	e = endpoint_of(vni, p.daddr);
	if (!e) {
		e = router_of(vni, p.daddr);
		if (e && e->kind != K_LOCAL)
			e = 0;
	}
	if (e && e->kind != K_LOCAL)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (e && outside) {
		renamed = note_via(&p, vni, provider, e, &f);
	} else {
		known = flow_of(e ? vni : 0, &p);
		if (known && known->kind == F_REPLY && known->peer_vni == vni) {
			f = *known;
			renamed = 1;
		}
		if (!e && (outside || !renamed))
			return drop(ctx, R_DROP_NO_ENDPOINT);
		/* A merged frame keeps its tunnel marks unless the kernel takes the header off, and a device that
		 * must cut it again would stumble over them. */
		if (!e && base && ctx->gso_size && f.out != OUT_ENDPOINT)
			return TC_ACT_UNSPEC;
	}
	if (base) {
		if (pop_tunnel(ctx, tos) || bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
			return drop(ctx, R_DROP_ERROR);
		p.l3 -= base;
		p.l4 -= base;
	}
	if (!e)
		return reply(ctx, &p, &f);
	if (renamed && translate(ctx, &p, &f))
		return drop(ctx, R_DROP_ERROR);
	return deliver(ctx, &p, e);
}

/* VXLAN to this host, header plain: outer IP without options and not a fragment. MISS: it is something else. */
NOINLINE int from_tunnel(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct ip ip;
	struct {
		__be16 sport, dport, length, sum;
	} udp;
	struct {
		__be32 flags, vni;
	} vxlan;

	if (!cfg || ctx->protocol != bpf_htons(ETH_IP) || bpf_skb_load_bytes(ctx, ETH_LEN, &ip, sizeof(ip)) ||
	    ip.version_ihl != 0x45 || ip.proto != PROTO_UDP || ip.daddr != cfg->underlay_addr ||
	    (ip.frag & bpf_htons(0x3fff)) || bpf_ntohs(ip.length) + ETH_LEN > ctx->len ||
	    bpf_skb_load_bytes(ctx, ETH_LEN + IP_LEN, &udp, sizeof(udp)) || udp.dport != cfg->vxlan_port)
		return MISS;
	if (bpf_skb_load_bytes(ctx, ETH_LEN + IP_LEN + 8, &vxlan, sizeof(vxlan)))
		return drop(ctx, R_DROP_GARBAGE);
	if (!(vxlan.flags & bpf_htonl(0x08000000)))
		return drop(ctx, R_DROP_GARBAGE);
	if (bpf_ntohl(vxlan.vni) >> 8 == PROBE_VNI)
		return probe_from_tunnel(ctx, ip.saddr);
	return inbound(ctx, bpf_ntohl(vxlan.vni) >> 8, ip.saddr, ip.tos, VXLAN_PUSH, generation);
}

/* All of from_underlay for a packet outside the tunnel that no unified flow took. */
NOINLINE int walk_from_underlay(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct pkt p = {};

	if (!cfg || ctx->protocol != bpf_htons(ETH_IP) || parse(ctx, ETH_LEN, 0, &p))
		return TC_ACT_UNSPEC;
	if (p.proto == PROTO_UDP && p.daddr == cfg->underlay_addr && p.dport == cfg->vxlan_port && !p.later)
		return TC_ACT_UNSPEC; /* the kernel reassembles; from_vxlan sees the result */
	if (!p.error && !frontend_of(0, p.daddr, p.dport, p.proto))
		return TC_ACT_UNSPEC;

	struct question q = { .front = p.daddr, .source = p.saddr, .out = OUT_UNDERLAY };

	p.origin = FROM_UNDERLAY;
	p.complain = p.daddr;
	came(&p, ctx->ifindex, generation);
	return balanced(ctx, &p, &q);
}

SEC("tc")
int from_underlay(struct __sk_buff *ctx)
{
	__u32 generation = current_generation();
	int taken = again_from_underlay(ctx, generation);

	if (taken == MISS)
		taken = from_tunnel(ctx, generation);
	if (taken == MISS)
		taken = again(ctx, generation);
	return taken == MISS ? walk_from_underlay(ctx, generation) : taken;
}

SEC("tc")
int from_vxlan(struct __sk_buff *ctx)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(ctx, &key, __builtin_offsetof(struct bpf_tunnel_key, local_ipv4), 0))
		return drop(ctx, R_DROP_GARBAGE);
	if (key.tunnel_id == PROBE_VNI)
		return probe_from_vxlan(ctx, bpf_htonl(key.remote_ipv4));
	return inbound(ctx, key.tunnel_id, bpf_htonl(key.remote_ipv4), 0, 0, 0);
}

NOINLINE int walk_from_host(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	struct question q = { .out = OUT_HOST };
	const __be32 net = bpf_htonl(0xff000000), loopback = bpf_htonl(0x7f000000);
	struct pkt p = {};

	if (!cfg || ctx->protocol != bpf_htons(ETH_IP) || parse(ctx, ETH_LEN, 0, &p))
		return TC_ACT_UNSPEC;
	if (p.proto == PROTO_UDP && p.dport == cfg->vxlan_port && p.daddr == loopback + bpf_htonl(1))
		return probe_out(ctx, &p);
	q.front = p.daddr;
	q.source = (p.saddr & net) == loopback ? cfg->underlay_addr : p.saddr;
	if (!p.error && !frontend_of(0, q.front, p.dport, p.proto)) {
		if ((p.daddr & net) != loopback)
			return TC_ACT_UNSPEC;
		q.front = cfg->underlay_addr; /* localhost stands for the host's address */
		if (!frontend_of(0, q.front, p.dport, p.proto))
			return TC_ACT_UNSPEC;
	}
	p.origin = FROM_HOST;
	p.complain = p.daddr;
	came(&p, ctx->ifindex, generation);
	return balanced(ctx, &p, &q);
}

SEC("tc")
int from_host(struct __sk_buff *ctx)
{
	__u32 generation = current_generation();
	int taken = again(ctx, generation);

	return taken == MISS ? walk_from_host(ctx, generation) : taken;
}
