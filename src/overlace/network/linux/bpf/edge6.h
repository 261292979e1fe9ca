/* SPDX-License-Identifier: Apache-2.0 */
/* IPv6 where the overlay ends: clients outside and on this host who ask published ports, and containers' packets to
 * addresses outside. IPv4 has the same in overlace.c and onward.h. */
#pragma once
#include "neighbour.h"
#include "onward.h"

/* A packet outside the tunnel: a client's, here or elsewhere, to a published port, or none of ours. */
NOINLINE int walk_from_outside(struct __sk_buff *ctx, __u32 generation)
{
	struct config *cfg = settings();
	addr_t *named;
	int here;
	ROOM(pkt, p);
	ROOM(question, q);

	if (!cfg || ctx->protocol != bpf_htons(ETH_IPV6) || parse(ctx, ETH_LEN, 0, p))
		return TC_ACT_UNSPEC;
	here = ctx->ifindex == cfg->lo_ifindex;
	if (is_link_local(p->saddr) || is_multicast(p->saddr) || is_none(p->saddr) ||
	    (!here && (is_loopback(p->saddr) || is_loopback(p->daddr))))
		return TC_ACT_UNSPEC;
	if (!find_published(p, &q->front) && !p->error)
		return TC_ACT_UNSPEC;
	q->source = p->saddr;
	if (is_loopback(p->saddr)) {
		named = own_address(&p->saddr);
		if (!named)
			return TC_ACT_UNSPEC; /* nobody could answer it */
		q->source = *named;
	}
	q->out = here ? OUT_HOST : OUT_UNDERLAY;
	q->ifindex = ctx->ifindex;
	p->origin = here ? FROM_HOST : FROM_UNDERLAY;
	p->complain = p->daddr;
	came(p, ctx->ifindex, generation);
	return balanced(ctx, p, q);
}

LOOKUP int is_excepted(const struct port *port, const struct pkt *p)
{
	struct exception_key except = { .prefix = 32 + ADDR_BITS, .list = port->exceptions, .to = p->daddr };
	__u32 *to = bpf_map_lookup_elem(&exceptions, &except);

	return to && *to == NAT_NEVER;
}

/* As onward.h's. Who may not leave, or whose host has no way out
 * itself, is told so at once. */
NOINLINE int leave_overlay(struct __sk_buff *ctx, struct pkt *p, struct port *port, __u32 foreign, struct question *q)
{
	struct config *cfg = settings();
	addr_t *own;
	int host;

	if (!cfg || !p || !port || !q)
		return drop(ctx, R_DROP_ERROR);
	if (foreign)
		return drop(ctx, R_DROP_SPOOFED);
	if (!may_leave(p, port, ctx->ifindex))
		return drop(ctx, R_DROP_POLICY);
	if (is_overlay(&p->daddr))
		return drop(ctx, R_DROP_ISOLATION);
	if (p->proto == PROTO_UDP && p->dport == cfg->vxlan_port)
		return drop(ctx, R_DROP_ISOLATION);
	own = is_loopback(p->daddr) ? 0 : own_address(&p->daddr);
	host = (port->flags & PORT_HOST) && own;
	if (!host && (!(port->flags & PORT_OUTBOUND) || is_loopback(p->daddr) || !goes_outside()))
		return answer_no_route(ctx, p);
	if (own && find_published(p, &q->front))
		return MISS;
	if (!host && is_excepted(port, p))
		return answer_no_route(ctx, p);
	remember(p, U_TO_HOST, 0, 0);
	return to_host(ctx);
}
