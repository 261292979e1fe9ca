/* SPDX-License-Identifier: Apache-2.0 */
/* Who may open connections to and from an endpoint, and the last step into a container. vfp/access.py is the same in
 * Python, and the definition. */
#pragma once
#include "packet.h"

INLINE int in_set(__u32 low, __u32 high, __be32 addr)
{
	struct set_key key = { .prefix = 96, .set = { low, high }, .addr = addr };

	return bpf_map_lookup_elem(&address_sets, &key) != 0;
}

/* What the list says of a connection: 1 yes, 0 no. Global, so that the verifier looks at its loop once.
 * `ports`: local << 16 | remote, host order. */
__attribute__((noinline)) int judge(__u64 list, __u32 local, __u32 remote, __u32 ports, __u32 proto)
{
	struct access_list *l = bpf_map_lookup_elem(&access_lists, &list);
	__u32 local_port = ports >> 16, remote_port = ports & 0xffff, passed = 256;

	if (!l)
		return 0;
	for (__u32 i = 0; i < ACCESS_RULES && i < l->count; i++) {
		struct access_rule *r = &l->rules[i];

		if (r->tier == passed)
			continue;
		if (r->proto && r->proto != proto)
			continue;
		if (local_port < r->local_low || local_port > r->local_high || remote_port < r->remote_low ||
		    remote_port > r->remote_high)
			continue;
		if (r->sets & SET_LOCAL ? !in_set(r->local, r->local_mask, local) : (local ^ r->local) & r->local_mask)
			continue;
		if (r->sets & SET_REMOTE ? !in_set(r->remote, r->remote_mask, remote) :
					   (remote ^ r->remote) & r->remote_mask)
			continue;
		if (r->action != RULE_PASS)
			return r->action == RULE_ALLOW;
		passed = r->tier;
	}
	return 0;
}

INLINE int judged(__u64 list, const struct access_key *key)
{
	__u32 ports = (__u32)bpf_ntohs(key->local_port) << 16 | bpf_ntohs(key->remote_port);

	return judge(list, key->local, key->remote, ports, key->proto);
}

/* Whether the packet may pass the filtered endpoint at `port`. What an allowed connection carries passes both ways, ICMP
 * errors about it included; a TCP SYN always begins a new one. */
NOINLINE int admitted(const struct pkt *p, const struct port *port, __u32 direction)
{
	struct access_key key = {};
	struct access *known, new = {};
	__u32 at = now();
	int syn;

	if (!p || !port || direction > GOES_OUT)
		return 0;
	key.vni = port->vni;
	if (direction == GOES_OUT) {
		key.local = p->error ? p->error_saddr : p->saddr;
		key.remote = p->error ? p->error_daddr : p->daddr;
		key.local_port = p->sport;
		key.remote_port = p->dport;
	} else {
		key.local = p->error ? p->error_daddr : p->daddr;
		key.remote = p->error ? p->error_saddr : p->saddr;
		key.local_port = p->dport;
		key.remote_port = p->sport;
	}
	key.proto = p->error ? p->error_proto : p->proto;
	syn = p->proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	known = bpf_map_lookup_elem(&allowed, &key);
	if (known && !syn && (key.proto == PROTO_TCP || at - known->seen < UDP_IDLE)) {
		__u64 list = port->access[known->direction & 1];

		if (known->list == list || judged(list, &key)) {
			if (known->list != list)
				known->list = list;
			if (known->seen != at && !p->error)
				known->seen = at;
			return 1;
		}
	}
	if (p->error) {
		key.proto = PROTO_ICMP;
		key.local_port = key.remote_port = 0;
		key.local = direction == GOES_OUT ? p->saddr : p->daddr;
		key.remote = direction == GOES_OUT ? p->daddr : p->saddr;
	}
	new.list = port->access[direction];
	if (!judged(new.list, &key))
		return 0;
	if (p->error)
		return 1;
	new.seen = at;
	new.direction = direction;
	bpf_map_update_elem(&allowed, &key, &new, BPF_ANY);
	return 1;
}

/* Into the container of local endpoint `e`; the packet is as the container shall see it. */
INLINE int deliver(struct __sk_buff *ctx, const struct pkt *p, struct endpoint *e)
{
	__u32 ifindex = e->ifindex;

	if (!ifindex)
		return drop(ctx, R_DROP_NO_ENDPOINT);
	if (e->flags & ENDPOINT_FILTERED) {
		struct port *port = bpf_map_lookup_elem(&ports, &ifindex);

		if (!port || ((port->flags & PORT_FILTERED) && !admitted(p, port, GOES_IN)))
			return drop(ctx, R_DROP_POLICY);
	}
	if (bpf_skb_store_bytes(ctx, 0, e->mac, 6, 0))
		return drop(ctx, R_DROP_ERROR);
	bpf_skb_change_type(ctx, HOST_PACKET);
	return end(ctx, R_DELIVERED, bpf_redirect_peer(ifindex, 0));
}
