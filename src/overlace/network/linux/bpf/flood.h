/* SPDX-License-Identifier: Apache-2.0 */
/* Broadcast and multicast inside a network whose option says so: head-end replication (RFC 8365 section 5.1's ingress
 * replication) to every container here and every other host of the network, whoever wants it. IGMP and MLD are not looked
 * at. Both families of a network share its rate. */
#pragma once
#include "access.h"
#include "path_mtu.h"
#include "qos.h"

#define PROTO_IGMP 2
#define FLOOD_BURST_NS 100000000ull /* what may be sent at once: 100 ms of the rate, 16 packets at least */

#ifdef OVERLACE_IPV6
/* What comes from a link-local address stays on its link: nobody elsewhere could answer it. */
INLINE int is_flooded(const struct network *net, __u32 vni, const struct pkt *p)
{
	return (net->flags & NET_FLOOD) && is_multicast(p->daddr) && !is_for_routers(p) && !is_link_local(p->saddr) &&
	       !is_multicast(p->saddr) && !is_none(p->saddr);
}
#else
INLINE int is_flooded(const struct network *net, __u32 vni, const struct pkt *p)
{
	__be32 to = p->daddr;
	struct endpoint *e;

	if (!(net->flags & NET_FLOOD))
		return 0;
	if ((to & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || to == 0xffffffff)
		return 1;
	e = endpoint_of(vni, &to);
	return e && e->kind == K_BROADCAST;
}
#endif

/* Whether containers of this host have sent as much on the network as its option allows. */
NOINLINE int over_flood_rate(__u32 vni)
{
	struct flood_key key = { .vni = vni, .index = FLOOD_RATE };
	struct flood *limit = bpf_map_lookup_elem(&floods, &key);
	__u64 cost, burst;

	if (!limit || !number_of(limit->provider))
		return 1;
	cost = 1000000000ull / number_of(limit->provider);
	burst = 16 * cost > FLOOD_BURST_NS ? 16 * cost : FLOOD_BURST_NS;
	return over_rate(&flood_meters, &vni, bpf_ktime_get_ns(), cost, burst);
}

/* The kernel's vxlan device finds the host's next hop and keeps the inner Ethernet header, group address and all. */
NOINLINE int copy_to_host(struct __sk_buff *ctx, __u32 vni, const host_t *provider)
{
	struct config *cfg = settings();

	if (!cfg || !provider || set_tunnel(ctx, vni, *provider))
		return -1;
	return bpf_clone_redirect(ctx, cfg->vxlan_ifindex, 0);
}

struct flooding {
	struct __sk_buff *ctx;
	struct pkt *p;
};

/* One target: 1 ends. */
static long flood_one(__u32 i, struct flooding *f)
{
	struct scratch *s = scratch();
	struct flood_key key = { .vni = s ? s->flood_vni : 0, .index = i };
	struct flood *to = bpf_map_lookup_elem(&floods, &key);
	struct endpoint *e;
	__u32 ifindex;

	if (!to || !s)
		return 1;
	if (!is_none(to->local)) {
		if (same(to->local, s->flood_sender))
			return 0;
		e = endpoint_of(key.vni, &to->local);
		if (!e || e->kind != K_LOCAL || !e->ifindex)
			return 0;
		ifindex = e->ifindex;
		if (!may_enter(f->p, e, ifindex))
			return 0;
		bpf_clone_redirect(f->ctx, ifindex, 0);
		return 0;
	}
	if (!s->flood_remote)
		return 1;
	copy_to_host(f->ctx, key.vni, &to->provider);
	return 0;
}

/* Copies of the frame for all that should have it but `sender`; the frame itself is used up. */
NOINLINE int flood(struct __sk_buff *ctx, struct pkt *p, __u32 vni, const addr_t *sender, __u32 remote)
{
	struct flooding f = { .ctx = ctx, .p = p };
	struct scratch *s = scratch();

	if (!p || !s || !sender)
		return drop(ctx, R_DROP_ERROR);
	if (p->proto == PROTO_IGMP)
		return drop(ctx, R_DROP_UNSUPPORTED);
	p->generation = 0;
	s->flood_vni = vni;
	s->flood_remote = remote;
	s->flood_sender = *sender;
	bpf_loop(FLOOD_TARGETS, flood_one, &f, 0);
	return end(ctx, R_REPLICATED, TC_ACT_SHOT);
}
