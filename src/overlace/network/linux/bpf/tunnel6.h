/* SPDX-License-Identifier: Apache-2.0 */
/* The tunnel between hosts that reach each other over IPv6: its outer header, and who sent it. tunnel4.h is the same over
 * IPv4. The outer UDP checksum is zero, which RFC 6935 and 6936 allow tunnels whose inner packets have their own; the flow
 * label says which flow the inner packet is of (RFC 6438). */
#pragma once

typedef struct ip6 outer_ip_t;

#define ETH_OUTER ETH_IPV6

#define PUSH_FLAGS                                                                                                  \
	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_LEN) |            \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO)

INLINE host_t own_host(const struct config *cfg)
{
	return cfg->tunnel_addr;
}

/* Whether it is UDP with no header between: neither options nor a fragment. */
INLINE int is_plain_outer(const outer_ip_t *ip)
{
	return (ip->first & bpf_htonl(0xf0000000)) == bpf_htonl(0x60000000) && ip->next == PROTO_UDP;
}

INLINE __u32 length_of_outer(const outer_ip_t *ip)
{
	return OUTER_HEAD + bpf_ntohs(ip->payload);
}

INLINE __u8 tos_of_outer(const outer_ip_t *ip)
{
	return bpf_ntohl(ip->first) >> 20;
}

/* `length`: bytes of the whole packet. Nobody on the way fragments it, `whole` or not. */
INLINE void write_outer(outer_ip_t *ip, const struct config *cfg, host_t to, __u32 length, __u8 tos, int whole, __u32 hash)
{
	ip->first = bpf_htonl(0x60000000 | (__u32)tos << 20 | (hash & 0xfffff));
	ip->payload = bpf_htons(length - OUTER_HEAD);
	ip->next = PROTO_UDP;
	ip->hops = 64;
	ip->saddr = cfg->tunnel_addr;
	ip->daddr = to;
}

/* Out of the underlay, to the next hop on the way to the host. */
INLINE int to_host_at(const struct config *cfg, host_t to)
{
	const six_t *own = &cfg->tunnel_addr, *mask = &cfg->tunnel_mask;
	struct bpf_redir_neigh next = { .nh_family = FAMILY_INET6 };

	if (((to.w[0] ^ own->w[0]) & mask->w[0]) | ((to.w[1] ^ own->w[1]) & mask->w[1]) |
	    ((to.w[2] ^ own->w[2]) & mask->w[2]) | ((to.w[3] ^ own->w[3]) & mask->w[3]))
		return bpf_redirect_neigh(cfg->underlay_ifindex, 0, 0, 0);
	__builtin_memcpy(next.ipv6_nh, &to, sizeof(to));
	return bpf_redirect_neigh(cfg->underlay_ifindex, &next, sizeof(next), 0);
}

/* For the kernel's vxlan device: where the packet goes. */
INLINE int set_tunnel(struct __sk_buff *ctx, __u32 vni, host_t to)
{
	struct bpf_tunnel_key key = { .tunnel_id = vni, .tunnel_ttl = 64 };

	__builtin_memcpy(key.remote_ipv6, &to, sizeof(to));
	return bpf_skb_set_tunnel_key(ctx, &key, __builtin_offsetof(struct bpf_tunnel_key, local_ipv4),
				      BPF_F_ZERO_CSUM_TX | BPF_F_TUNINFO_IPV6);
}

/* Where it came from. -1: it did not come over IPv6. */
INLINE int get_tunnel(struct __sk_buff *ctx, __u32 *vni, host_t *from)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(ctx, &key, __builtin_offsetof(struct bpf_tunnel_key, local_ipv4), BPF_F_TUNINFO_IPV6))
		return -1;
	*vni = key.tunnel_id;
	__builtin_memcpy(from, key.remote_ipv6, sizeof(*from));
	return 0;
}
