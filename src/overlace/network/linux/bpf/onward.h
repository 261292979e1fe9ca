/* SPDX-License-Identifier: Apache-2.0 */
/* Where a packet goes when no unified flow says so: to an endpoint here or behind another host, back to a client, by a
 * route, to a backend, or out of the overlay. Each leaves its way remembered (unified.h) for the connection's later packets. */
#pragma once
#include "answer.h"
#include "flow.h"
#include "last_step.h"
#include "path_mtu.h"

/* Where the frontend of a published port is, if the packet is for one: the port of one address, else of all the host's. */
LOOKUP int find_published(const struct pkt *p, addr_t *front)
{
	*front = p->daddr;
	if (frontend_of(0, front, p->dport, p->proto))
		return 1;
	*front = numbered(0);
	return frontend_of(0, front, p->dport, p->proto) && own_address(&p->daddr);
}

/* Out of which interface an answer goes to its client outside, who came in by `in` (0: the underlay's): there, where a route
 * leads to the client that way, else where the host's routes lead. A host that does not forward has no such question. */
NOINLINE __u32 way_out(struct __sk_buff *ctx, const struct pkt *p, __u32 in)
{
	struct config *cfg = settings();
	struct bpf_fib_lookup route = {};
	long found;

	if (!cfg || !p)
		return in;
	if (!in)
		in = cfg->underlay_ifindex;
#ifdef OVERLACE_IPV6
	route.family = FAMILY_INET6;
	__builtin_memcpy(route.ipv6_src, &p->saddr, sizeof(p->saddr));
	__builtin_memcpy(route.ipv6_dst, &p->daddr, sizeof(p->daddr));
#else
	if (in == cfg->underlay_ifindex && ((p->daddr ^ cfg->underlay_addr) & cfg->underlay_mask) == 0)
		return in;
	route.family = FAMILY_INET;
	route.ipv4_src = p->saddr;
	route.ipv4_dst = p->daddr;
#endif
	route.l4_protocol = p->proto;
	route.ifindex = in;
	found = bpf_fib_lookup(ctx, &route, sizeof(route), BPF_FIB_LOOKUP_OUTPUT);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found > BPF_FIB_LKUP_RET_NOT_FWDED)
		return in;
	route.l4_protocol = p->proto;
	route.sport = route.dport = 0;
	route.tot_len = 0;
	route.ifindex = cfg->lo_ifindex;
	found = bpf_fib_lookup(ctx, &route, sizeof(route), 0);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH)
		return route.ifindex;
	return in;
}

/* To another host, translated first where `nat` says how. What is too big for the path goes in pieces, or is answered. */
INLINE int send_to_host(struct __sk_buff *ctx, struct pkt *p, const struct config *cfg, const struct hop *hop, struct flow *nat)
{
	__u32 mtu = path_mtu(cfg, hop->provider);
	int big = too_big(ctx, mtu, p);

	if (big && !may_be_split(ctx, p))
		return answer_too_big(ctx, p, mtu);
	if (nat && translate(ctx, p, nat))
		return drop(ctx, R_DROP_ERROR);
	if (!big)
		remember(p, U_ENCAPSULATE, 0, hop);
	return encapsulate(ctx, p, hop, big);
}

/* Send to the endpoint of network `vni` that has the destination, the one `nat` gives it if given; `to`: to another one. */
NOINLINE int forward(struct __sk_buff *ctx, struct pkt *p, __u32 vni, const addr_t *to, struct flow *nat)
{
	struct config *cfg = settings();
	struct endpoint *e;

	if (!cfg || !p)
		return drop(ctx, R_DROP_ERROR);
	e = endpoint_of(vni, to ? to : nat ? &nat->daddr : &p->daddr);
	if (!e)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (e->kind == K_REMOTE) {
		struct hop hop = { .vni = vni, .provider = e->provider };

		copy_mac(hop.dst, e->mac);
		if (nat) {
			struct network *net = bpf_map_lookup_elem(&networks, &vni);

			if (!net)
				return drop(ctx, R_DROP_NO_ENDPOINT);
			copy_mac(hop.src, net->gateway_mac);
		} else if (bpf_skb_load_bytes(ctx, 6, hop.src, 6)) {
			return drop(ctx, R_DROP_ERROR);
		}
		return send_to_host(ctx, p, cfg, &hop, nat);
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
	if (p->proto == PROTO_TCP && (p->tcp_flags & TCP_RST)) { /* the client has nothing more to say */
		struct flow *whole = answered_by(f, PROTO_TCP);

		if (whole)
			whole->state |= STATE_CLOSED;
	}
	if (f->out == OUT_UNDERLAY) {
		__u32 out = way_out(ctx, p, f->vni);

		remember(p, U_UNDERLAY, out, 0);
		return to_client(ctx, cfg, out, p->daddr);
	}
	if (f->out == OUT_HOST) {
		remember(p, U_LOOPBACK, 0, 0);
		return to_loopback(ctx, cfg);
	}
	e = endpoint_of(f->vni, &f->daddr);
	if (!e || e->kind != K_LOCAL)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	return deliver(ctx, p, e);
}

/* To the host that has the destination's whole subnet, whose router takes it from there. */
NOINLINE int along(struct __sk_buff *ctx, struct pkt *p, struct route *r)
{
	struct config *cfg = settings();
	struct hop hop;

	if (!cfg || !p || !r || bpf_skb_load_bytes(ctx, 6, hop.src, 6))
		return drop(ctx, R_DROP_ERROR);
	hop.vni = r->vni;
	hop.provider = r->provider;
	copy_mac(hop.dst, r->mac);
	return send_to_host(ctx, p, cfg, &hop, 0);
}

/* A container's answer to a client that came in through another host goes out there, too. */
NOINLINE int back_through(struct __sk_buff *ctx, struct pkt *p, struct flow *f)
{
	struct config *cfg = settings();
	struct network *net;
	struct endpoint *e;
	struct hop hop;

	if (!cfg || !p || !f)
		return drop(ctx, R_DROP_ERROR);
	p->noted = 1;
	if (p->proto == PROTO_TCP && (p->tcp_flags & TCP_RST))
		f->state |= STATE_CLOSED;
	hop.vni = f->vni;
	hop.provider = f->provider;
	net = bpf_map_lookup_elem(&networks, &hop.vni);
	e = endpoint_of(hop.vni, &f->saddr);
	if (!net || !e)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	copy_mac(hop.src, e->mac);
	copy_mac(hop.dst, net->gateway_mac);
	return send_to_host(ctx, p, cfg, &hop, f);
}

/* To the backend that `f` names. A frontend that preserves its address leaves it to the packet. */
INLINE int to_backend(struct __sk_buff *ctx, struct pkt *p, const struct question *q, struct flow *f)
{
	addr_t backend = f->daddr;

	if (f->state & STATE_PRESERVED) {
		f->daddr = q->front;
		if (is_none(q->front)) { /* a port of all of the host's addresses: 127.0.0.1 has the row of them all */
			addr_t *own = own_address(&p->daddr);

			if (!own)
				own = own_address(&q->front);
			if (own)
				f->daddr = *own;
		}
	}
	return forward(ctx, p, f->vni, &backend, f);
}

/* Do with the packet what balance() said. An ICMP error follows the connection it is about. */
NOINLINE int balanced(struct __sk_buff *ctx, struct pkt *p, struct question *q)
{
	struct flow *known;
	ROOM(flow, f);

	if (!p || !q)
		return drop(ctx, R_DROP_ERROR);
	if (p->error) {
		known = flow_of(q->scope, p);
		if (!known || known->kind != F_FORWARD)
			return q->scope ? drop(ctx, R_DROP_NO_ENDPOINT) : TC_ACT_UNSPEC;
		*f = *known;
		return to_backend(ctx, p, q, f);
	}
	switch (balance(p, q, f)) {
	case B_GO:
		return to_backend(ctx, p, q, f);
	case B_PASS:
		return TC_ACT_UNSPEC;
	case B_REFUSE:
		return refuse(ctx, p);
	}
	return drop(ctx, R_DROP_ERROR);
}

/* A container's answer to a client outside goes the way the client came, whatever routes the container has. MISS: it is
 * none. */
NOINLINE int answer_outside(struct __sk_buff *ctx, struct pkt *p, const struct port *port)
{
	struct flow *f;

	if (!p || !port)
		return MISS;

	struct flow_key key = { .scope = SCOPE_SANDBOX, .saddr = numbered(port->sandbox), .sport = p->sport, .dport = p->dport };

	key.daddr = p->daddr;
	key.proto = p->error ? p->error_proto : p->proto;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		return MISS;
	return f->kind == F_REPLY ? reply(ctx, p, f) : back_through(ctx, p, f);
}

#ifndef OVERLACE_IPV6
/* A container's packet to an address outside its network, or with the source of another of its interfaces, that answers
 * nobody. MISS: it is for a published port of this very host, which `q` names then. */
NOINLINE int leave_overlay(struct __sk_buff *ctx, struct pkt *p, struct port *port, __u32 foreign, struct question *q)
{
	struct config *cfg = settings();
	int host;

	if (!cfg || !p || !port || !q)
		return drop(ctx, R_DROP_ERROR);
	if (foreign)
		return drop(ctx, R_DROP_SPOOFED);
	if (!may_leave(p, port, ctx->ifindex))
		return drop(ctx, R_DROP_POLICY);
	if (is_overlay(&p->daddr))
		return drop(ctx, R_DROP_ISOLATION);
	if ((p->daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || p->daddr == 0xffffffff)
		return drop(ctx, R_DROP_UNSUPPORTED);
	if (p->proto == PROTO_UDP && p->dport == cfg->vxlan_port)
		return drop(ctx, R_DROP_ISOLATION); /* translated, it would look like tunnel traffic of this host */
	host = (port->flags & PORT_HOST) && p->daddr == cfg->underlay_addr; /* not what else is on it, as cloud metadata */
	if (!host && (!(port->flags & PORT_OUTBOUND) || (p->daddr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000)))
		return drop(ctx, R_DROP_NO_OUTBOUND);
	if (find_published(p, &q->front))
		return MISS;

	struct exception_key except = { .prefix = 64, .list = port->exceptions, .to = p->daddr };

	__u32 *to = bpf_map_lookup_elem(&exceptions, &except);

	if (!host && to && *to == NAT_NEVER)
		return drop(ctx, R_DROP_NO_OUTBOUND);
	remember(p, U_TO_HOST, 0, 0);
	return to_host(ctx);
}
#endif

/* By an SDN route of the port to another endpoint, or to the host. MISS: no such route. */
NOINLINE int by_own_route(struct __sk_buff *ctx, struct pkt *p, const struct port *port)
{
	struct route *r;

	if (!p || !port || !port->routes)
		return MISS;
	r = route_of(port->routes, &p->daddr);
	if (!r)
		return MISS;
	if (!may_leave(p, port, ctx->ifindex))
		return drop(ctx, R_DROP_POLICY);
	if (!is_host_hop(&r->hop))
		return forward(ctx, p, port->vni, &r->hop, 0);
#ifdef OVERLACE_IPV6
	if (!goes_outside())
		return answer_no_route(ctx, p);
#endif
	remember(p, U_TO_HOST, 0, 0);
	return to_host(ctx);
}
