/* SPDX-License-Identifier: Apache-2.0 */
/* The last step of every way: out of the tunnel, into a container, to the host's own stack. To another host: packet.h. */
#pragma once
#include "unified.h"

/* BPF_F_ADJ_ROOM_DECAP_L3_IPV6 and _IPV4, Linux 6.3 */
#define INNER_PROTOCOL (IS_IPV6 ? 1ULL << 8 : IS_OVER_IPV6 ? 1ULL << 7 : 0)
#define MAY_NOT_POP (IS_IPV6 || IS_OVER_IPV6) /* on kernels before that */

/* Take the tunnel's headers off. The Ethernet header is the outer one then. -1, the packet untouched: the kernel cannot,
 * its vxlan device must. */
INLINE int pop_tunnel(struct __sk_buff *ctx, __u8 tos)
{
	if (bpf_skb_adjust_room(ctx, -VXLAN_PUSH, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | INNER_PROTOCOL))
		return -1;
	if ((tos & 3) == 3) /* congestion seen on the underlay, RFC 6040 */
		bpf_skb_ecn_set_ce(ctx);
	return 0;
}

INLINE int to_loopback(struct __sk_buff *ctx, const struct config *cfg)
{
	struct eth eth = { .proto = bpf_htons(ETH_INNER) }; /* lo's own address is all zeros */

	if (bpf_skb_store_bytes(ctx, 0, &eth, sizeof(eth), 0))
		return drop(ctx, R_DROP_ERROR);
	return end(ctx, R_TO_HOST, bpf_redirect(cfg->lo_ifindex, BPF_F_INGRESS));
}

INLINE int to_host(struct __sk_buff *ctx)
{
	bpf_skb_change_type(ctx, HOST_PACKET);
	return end(ctx, R_TO_HOST, TC_ACT_UNSPEC);
}

INLINE int into_container(struct __sk_buff *ctx, __u32 ifindex, const __u8 *mac)
{
	if (bpf_skb_store_bytes(ctx, 0, mac, 6, 0))
		return drop(ctx, R_DROP_ERROR);
	bpf_skb_change_type(ctx, HOST_PACKET);
	return end(ctx, R_DELIVERED, bpf_redirect_peer(ifindex, 0));
}

/* Into the container of local endpoint `e`; the packet is as the container shall see it. */
INLINE int deliver(struct __sk_buff *ctx, const struct pkt *p, struct endpoint *e)
{
	__u32 ifindex = e->ifindex;
	struct hop hop = {};

	if (!ifindex)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (!may_enter(p, e, ifindex))
		return drop(ctx, R_DROP_POLICY);
	copy_mac(hop.dst, e->mac);
	remember(p, U_DELIVER, ifindex, &hop);
	return into_container(ctx, ifindex, hop.dst);
}
