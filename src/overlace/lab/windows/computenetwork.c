/* A stand-in for computenetwork.dll and vmcompute.dll!HNSCall: the same exports, every call forwarded to
 * `overlace hns serve` on 127.0.0.1:$OVERLACE_HNS_PORT (docs/hns.md has the protocol). It holds no state of HNS.
 *
 * Built for Linux (one shared object, with CoTaskMemFree, which ole32.dll has on Windows) and with mingw for Windows,
 * where -DVMCOMPUTE leaves HNSCall alone. Signatures: Microsoft's HCN reference and hcsshim's hcn/hcn.go.
 */
#include "stand_in.h"

/* -- HCN -------------------------------------------------------------------------------------------------------- */

#ifndef VMCOMPUTE

#define OBJECT(X, XS)                                                                                                   \
	EXPORT HRESULT CALL HcnEnumerate##XS(const wide *query, wide **ids, wide **record)                               \
	{                                                                                                                \
		return ids ? forward("Enumerate" #XS, NULL, NULL, query, NULL, ids, record) : FAILED_POINTER;            \
	}                                                                                                                \
	EXPORT HRESULT CALL HcnOpen##X(const void *id, void **handle, wide **record)                                     \
	{                                                                                                                \
		return handle && id ? forward("Open" #X, NULL, id, NULL, handle, NULL, record) : FAILED_POINTER;         \
	}                                                                                                                \
	EXPORT HRESULT CALL HcnModify##X(void *handle, const wide *settings, wide **record)                              \
	{                                                                                                                \
		return forward("Modify" #X, handle, NULL, settings, NULL, NULL, record);                                 \
	}                                                                                                                \
	EXPORT HRESULT CALL HcnQuery##X##Properties(void *handle, const wide *query, wide **properties, wide **record)   \
	{                                                                                                                \
		return properties ? forward("Query" #X, handle, NULL, query, NULL, properties, record) : FAILED_POINTER; \
	}                                                                                                                \
	EXPORT HRESULT CALL HcnDelete##X(const void *id, wide **record)                                                  \
	{                                                                                                                \
		return id ? forward("Delete" #X, NULL, id, NULL, NULL, NULL, record) : FAILED_POINTER;                   \
	}                                                                                                                \
	EXPORT HRESULT CALL HcnClose##X(void *handle)                                                                    \
	{                                                                                                                \
		return forward("Close" #X, handle, NULL, NULL, NULL, NULL, NULL);                                        \
	}

#define CREATE(X)                                                                                                       \
	EXPORT HRESULT CALL HcnCreate##X(const void *id, const wide *settings, void **handle, wide **record)             \
	{                                                                                                                \
		return handle ? forward("Create" #X, NULL, id, settings, handle, NULL, record) : FAILED_POINTER;         \
	}

OBJECT(Network, Networks)
OBJECT(Endpoint, Endpoints)
OBJECT(Namespace, Namespaces)
OBJECT(LoadBalancer, LoadBalancers)
OBJECT(SdnRoute, SdnRoutes)
CREATE(Network)
CREATE(Namespace)
CREATE(LoadBalancer)
CREATE(SdnRoute)

EXPORT HRESULT CALL HcnCreateEndpoint(void *network, const void *id, const wide *settings, void **handle, wide **record)
{
	return handle ? forward("CreateEndpoint", network, id, settings, handle, NULL, record) : FAILED_POINTER;
}

/* Endpoint is an HCN_ENDPOINT; the answer is EndpointStats as v1 has it. */
EXPORT HRESULT CALL HcnQueryEndpointStats(void *endpoint, const wide *query, wide **stats, wide **record)
{
	return stats ? forward("QueryEndpointStats", endpoint, NULL, query, NULL, stats, record) : FAILED_POINTER;
}

EXPORT HRESULT CALL HcnQueryEndpointAddresses(void *endpoint, const wide *query, wide **addresses, wide **record)
{
	return addresses ? forward("QueryEndpointAddresses", endpoint, NULL, query, NULL, addresses, record) :
			   FAILED_POINTER;
}

/* Guest network services belong to virtual machines, which this host has none of. The exports are there because loaders
 * look all of them up. */
#define NOT_HERE(name)                                                                                                  \
	EXPORT HRESULT CALL name(void)                                                                                   \
	{                                                                                                                \
		return NOT_IMPLEMENTED;                                                                                  \
	}
NOT_HERE(HcnCloseGuestNetworkService)
NOT_HERE(HcnCreateGuestNetworkService)
NOT_HERE(HcnDeleteGuestNetworkService)
NOT_HERE(HcnEnumerateGuestNetworkPortReservations)
NOT_HERE(HcnEnumerateGuestNetworkServices)
NOT_HERE(HcnFreeGuestNetworkPortReservations)
NOT_HERE(HcnModifyGuestNetworkService)
NOT_HERE(HcnOpenGuestNetworkService)
NOT_HERE(HcnQueryGuestNetworkServiceProperties)
NOT_HERE(HcnRegisterGuestNetworkServiceCallback)
NOT_HERE(HcnReleaseGuestNetworkServicePortReservationHandle)
NOT_HERE(HcnReserveGuestNetworkServicePort)
NOT_HERE(HcnReserveGuestNetworkServicePortRange)
NOT_HERE(HcnUnregisterGuestNetworkServiceCallback)

#endif /* VMCOMPUTE */

/* -- v1 --------------------------------------------------------------------------------------------------------- */

#if !defined(_WIN32) || defined(VMCOMPUTE)

EXPORT HRESULT CALL HNSCall(const wide *method, const wide *path, const wide *object, wide **response)
{
	static const wide nothing[1] = { 0 };
	const wide *parts[3] = { method, path, object ? object : nothing };
	char *texts[3] = { NULL, NULL, NULL }, *document = NULL;
	size_t lengths[3] = { 0, 0, 0 };
	HRESULT hr = FAILED_MEMORY;

	if (!method || !path || !response)
		return FAILED_POINTER;
	*response = NULL;
	for (int i = 0; i < 3; i++) {
		texts[i] = to_utf8(parts[i], &lengths[i]);
		if (!texts[i])
			goto out;
	}
	document = malloc(lengths[0] + lengths[1] + lengths[2] + 3);
	if (!document)
		goto out;
	sprintf(document, "%s %s\n%s", texts[0], texts[1], texts[2]);
	hr = forward_bytes("HNSCall", NULL, NULL, document, lengths[0] + lengths[1] + lengths[2] + 2, NULL, response, NULL);
out:
	for (int i = 0; i < 3; i++)
		free(texts[i]);
	free(document);
	return hr;
}

#endif

#ifndef _WIN32

/* Strings given and not yet freed, for tests of who owns what. */
EXPORT void CoTaskMemFree(void *p)
{
	free(p);
}

#endif
