/* SPDX-License-Identifier: Apache-2.0 */
/* Who may open connections to and from an endpoint. vfp/access.py is the same in Python, and the definition. */
#pragma once
#include "packet.h"

INLINE int in_set(__u32 low, __u32 high, __be32 addr)
{
	struct set_key key = { .prefix = 96, .set = { low, high }, .addr = addr };

	return bpf_map_lookup_elem(&address_sets, &key) != 0;
}

struct asked { /* about a connection; ports in host order */
	struct access_list *list;
	__u32 local, remote;
	__u16 local_port, remote_port;
	__u16 passed; /* tier whose rest is left out */
	__u8 proto, answer;
};

/* One rule: 1 ends the search. */
static long ask_rule(__u32 i, struct asked *a)
{
	struct access_rule *r;

	if (i >= ACCESS_RULES || i >= a->list->count)
		return 1;
	r = &a->list->rules[i];
	if (r->tier == a->passed)
		return 0;
	if (r->proto && r->proto != a->proto)
		return 0;
	if (a->local_port < r->local_low || a->local_port > r->local_high || a->remote_port < r->remote_low ||
	    a->remote_port > r->remote_high)
		return 0;
	if (r->sets & SET_LOCAL ? !in_set(r->local, r->local_mask, a->local) : (a->local ^ r->local) & r->local_mask)
		return 0;
	if (r->sets & SET_REMOTE ? !in_set(r->remote, r->remote_mask, a->remote) :
				   (a->remote ^ r->remote) & r->remote_mask)
		return 0;
	if (r->action == RULE_PASS) {
		a->passed = r->tier;
		return 0;
	}
	a->answer = r->action == RULE_ALLOW;
	return 1;
}

/* What the list says of a connection: 1 yes, 0 no. `ports`: local << 16 | remote, host order. */
NOINLINE int judge(__u64 list, __u32 local, __u32 remote, __u32 ports, __u32 proto)
{
	struct asked a = {
		.list = bpf_map_lookup_elem(&access_lists, &list), .local = local, .remote = remote, .local_port = ports >> 16,
		.remote_port = ports & 0xffff, .passed = 256, .proto = proto,
	};

	if (a.list)
		bpf_loop(ACCESS_RULES, ask_rule, &a, 0);
	return a.answer;
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
