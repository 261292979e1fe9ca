/* SPDX-License-Identifier: Apache-2.0 */
/* The tunnel between hosts that reach each other over IPv4: its outer header, and who sent it. tunnel6.h is the same over
 * IPv6. */
#pragma once

typedef struct ip outer_ip_t;

#define ETH_OUTER ETH_IPV4

#define PUSH_FLAGS                                                                                                  \
	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_LEN) |            \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO)

INLINE host_t own_host(const struct config *cfg)
{
	return cfg->underlay_addr;
}

/* Whether it is UDP without options and not a fragment. */
INLINE int is_plain_outer(const outer_ip_t *ip)
{
	return ip->version_ihl == 0x45 && ip->proto == PROTO_UDP && !(ip->frag & bpf_htons(0x3fff));
}

INLINE __u32 length_of_outer(const outer_ip_t *ip)
{
	return bpf_ntohs(ip->length);
}

INLINE __u8 tos_of_outer(const outer_ip_t *ip)
{
	return ip->tos;
}

/* `length`: bytes of the whole packet. `whole`: it may not be fragmented. */
INLINE void write_outer(outer_ip_t *ip, const struct config *cfg, host_t to, __u32 length, __u8 tos, int whole, __u32 hash)
{
	ip->version_ihl = 0x45;
	ip->tos = tos;
	ip->length = bpf_htons(length);
	if (whole)
		ip->frag = bpf_htons(0x4000);
	else
		ip->id = bpf_get_prandom_u32();
	ip->ttl = 64;
	ip->proto = PROTO_UDP;
	ip->saddr = cfg->underlay_addr;
	ip->daddr = to;
	seal_ip(ip);
}

/* Out of the underlay, to the next hop on the way to the host. */
INLINE int to_host_at(const struct config *cfg, host_t to)
{
	return to_neighbour(cfg, to);
}

/* For the kernel's vxlan device: where the packet goes. The short length is what kernels before 5.19 know. */
INLINE int set_tunnel(struct __sk_buff *ctx, __u32 vni, host_t to)
{
	struct bpf_tunnel_key key = { .tunnel_id = vni, .tunnel_ttl = 64, .remote_ipv4 = bpf_ntohl(to) };

	return bpf_skb_set_tunnel_key(ctx, &key, __builtin_offsetof(struct bpf_tunnel_key, local_ipv4), BPF_F_ZERO_CSUM_TX);
}

/* Where it came from. -1: it did not come over IPv4. */
INLINE int get_tunnel(struct __sk_buff *ctx, __u32 *vni, host_t *from)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(ctx, &key, __builtin_offsetof(struct bpf_tunnel_key, local_ipv4), 0))
		return -1;
	*vni = key.tunnel_id;
	*from = bpf_htonl(key.remote_ipv4);
	return 0;
}
