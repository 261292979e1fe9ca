/* A stand-in for computenetwork.dll and vmcompute.dll!HNSCall: the same exports, every call forwarded to
 * `overlace hns serve` on 127.0.0.1:$OVERLACE_HNS_PORT (docs/hns.md has the protocol). It holds no state of HNS.
 *
 * Built for Linux (one shared object, with CoTaskMemFree, which ole32.dll has on Windows) and with mingw for Windows,
 * where -DVMCOMPUTE leaves HNSCall alone. Signatures: Microsoft's HCN reference and hcsshim's hcn/hcn.go.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <winsock2.h>
#include <windows.h>
#include <objbase.h>
#define EXPORT __declspec(dllexport)
#define CALL WINAPI
#define allocate(size) CoTaskMemAlloc(size)
#define release(p) CoTaskMemFree(p)
typedef SOCKET connection;
#define NO_CONNECTION INVALID_SOCKET
#define hang_up(s) closesocket(s)
#define STOP_BOTH SD_BOTH
typedef HANDLE thread;
#else
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#define EXPORT __attribute__((visibility("default")))
#define CALL
#define allocate(size) malloc(size)
#define release(p) free(p)
typedef int32_t HRESULT;
typedef int connection;
#define NO_CONNECTION (-1)
#define hang_up(s) close(s)
#define STOP_BOTH SHUT_RDWR
typedef pthread_t thread;
#endif

typedef uint16_t wide; /* UTF-16LE, whatever wchar_t is */

#define FAILED_MEMORY ((HRESULT)0x8007000e)
#define NOT_IMPLEMENTED ((HRESULT)0x80004001)
#define FAILED_POINTER ((HRESULT)0x80004003)
#define SERVER_UNAVAILABLE ((HRESULT)0x800706ba)
#define CALL_FAILED ((HRESULT)0x800706be)
#define SERVICE_DISCONNECT 0x01000000u

/* -- texts ------------------------------------------------------------------------------------------------------ */

static char *to_utf8(const wide *text, size_t *length)
{
	size_t n = 0, at = 0;
	char *out;

	while (text[n])
		n++;
	out = malloc(3 * n + 1); /* a pair of surrogates is two units and four bytes */
	if (!out)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		uint32_t c = text[i];

		if (c >= 0xd800 && c < 0xdc00 && text[i + 1] >= 0xdc00 && text[i + 1] < 0xe000)
			c = 0x10000 + ((c - 0xd800) << 10) + (text[++i] - 0xdc00);
		else if (c >= 0xd800 && c < 0xe000)
			c = 0xfffd;
		if (c < 0x80) {
			out[at++] = (char)c;
		} else if (c < 0x800) {
			out[at++] = (char)(0xc0 | c >> 6);
			out[at++] = (char)(0x80 | (c & 0x3f));
		} else if (c < 0x10000) {
			out[at++] = (char)(0xe0 | c >> 12);
			out[at++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[at++] = (char)(0x80 | (c & 0x3f));
		} else {
			out[at++] = (char)(0xf0 | c >> 18);
			out[at++] = (char)(0x80 | (c >> 12 & 0x3f));
			out[at++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[at++] = (char)(0x80 | (c & 0x3f));
		}
	}
	out[at] = 0;
	*length = at;
	return out;
}

/* The service writes valid UTF-8. */
static wide *to_utf16(const unsigned char *text, size_t length)
{
	wide *out = allocate(2 * (length + 1));
	size_t at = 0;

	if (!out)
		return NULL;
	for (size_t i = 0; i < length;) {
		uint32_t c = text[i++];
		int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;

		if (more)
			c &= 0x3f >> more;
		while (more-- && i < length)
			c = c << 6 | (text[i++] & 0x3f);
		if (c >= 0x10000) {
			out[at++] = (wide)(0xd800 + ((c - 0x10000) >> 10));
			c = 0xdc00 + ((c - 0x10000) & 0x3ff);
		}
		out[at++] = (wide)c;
	}
	out[at] = 0;
	return out;
}

static void guid_text(const unsigned char *g, char out[37])
{
	if (!g) {
		strcpy(out, "-");
		return;
	}
	snprintf(out, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", g[3], g[2], g[1], g[0],
		 g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

/* -- the wire --------------------------------------------------------------------------------------------------- */

static connection dial(void)
{
	const char *text = getenv("OVERLACE_HNS_PORT");
	struct sockaddr_in where = { .sin_family = AF_INET };
	connection s;

#ifdef _WIN32
	WSADATA started;

	WSAStartup(MAKEWORD(2, 2), &started);
#endif
	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	where.sin_port = htons((uint16_t)(text ? atoi(text) : 0));
	s = socket(AF_INET, SOCK_STREAM, 0);
	if (s == NO_CONNECTION)
		return s;
	if (connect(s, (struct sockaddr *)&where, sizeof where)) {
		hang_up(s);
		return NO_CONNECTION;
	}
	return s;
}

static int send_all(connection s, const char *data, size_t length)
{
	while (length) {
#ifdef _WIN32
		int n = send(s, data, length > 65536 ? 65536 : (int)length, 0);
#else
		ssize_t n = send(s, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
#endif
		if (n <= 0)
			return -1;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

static int receive_all(connection s, char *data, size_t length)
{
	while (length) {
#ifdef _WIN32
		int n = recv(s, data, length > 65536 ? 65536 : (int)length, 0);
#else
		ssize_t n = recv(s, data, length, 0);

		if (n < 0 && errno == EINTR)
			continue;
#endif
		if (n <= 0)
			return -1;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

static int receive_line(connection s, char *line, size_t size)
{
	for (size_t at = 0; at + 1 < size; at++) {
		if (receive_all(s, line + at, 1))
			return -1;
		if (line[at] == '\n') {
			line[at] = 0;
			return 0;
		}
	}
	return -1;
}

/* `length` bytes as a string of ours; -1: NULL. 0 when it worked. */
static HRESULT receive_text(connection s, long long length, wide **out)
{
	char *data;
	wide *text;

	if (length < 0)
		return 0;
	data = malloc((size_t)length + 1);
	if (!data)
		return FAILED_MEMORY;
	if (receive_all(s, data, (size_t)length)) {
		free(data);
		return CALL_FAILED;
	}
	text = to_utf16((unsigned char *)data, (size_t)length);
	free(data);
	if (!text)
		return FAILED_MEMORY;
	if (out)
		*out = text;
	else
		release(text);
	return 0;
}

static HRESULT ask(connection s, const char *operation, uint64_t handle, const void *id, const char *document,
		   size_t length)
{
	char head[192], guid[37];

	guid_text(id, guid);
	snprintf(head, sizeof head, "%s %llu %s %lld\n", operation, (unsigned long long)handle, guid,
		 document ? (long long)length : -1LL);
	if (send_all(s, head, strlen(head)) || (document && send_all(s, document, length)))
		return CALL_FAILED;
	return 0;
}

static HRESULT answer(connection s, void **handle, wide **result, wide **record)
{
	char line[128];
	unsigned int hr;
	unsigned long long made;
	long long sizes[2];
	HRESULT failed;

	if (receive_line(s, line, sizeof line) ||
	    sscanf(line, "%x %llu %lld %lld", &hr, &made, &sizes[0], &sizes[1]) != 4)
		return CALL_FAILED;
	failed = receive_text(s, sizes[0], result);
	if (!failed)
		failed = receive_text(s, sizes[1], record);
	if (failed) {
		if (result && *result)
			release(*result);
		if (result)
			*result = NULL;
		return failed;
	}
	if (handle)
		*handle = (void *)(uintptr_t)made;
	return (HRESULT)hr;
}

static HRESULT forward_bytes(const char *operation, void *handle, const void *id, const char *document, size_t length,
			     void **made, wide **result, wide **record)
{
	connection s = dial();
	HRESULT hr;

	if (s == NO_CONNECTION)
		return SERVER_UNAVAILABLE;
	/* a refusal may come before all of the document is sent: read it all the same */
	hr = ask(s, operation, (uint64_t)(uintptr_t)handle, id, document, length);
	if (!hr || document)
		hr = answer(s, made, result, record);
	hang_up(s);
	return hr;
}

static HRESULT forward(const char *operation, void *handle, const void *id, const wide *document, void **made,
		       wide **result, wide **record)
{
	size_t length = 0;
	char *text = NULL;
	HRESULT hr;

	if (made)
		*made = NULL;
	if (result)
		*result = NULL;
	if (record)
		*record = NULL;
	if (document && !(text = to_utf8(document, &length)))
		return FAILED_MEMORY;
	hr = forward_bytes(operation, handle, id, text, length, made, result, record);
	free(text);
	return hr;
}

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

/* -- notifications ---------------------------------------------------------------------------------------------- */

typedef void(CALL *notify)(uint32_t type, void *context, HRESULT status, const wide *data);

struct callback {
	connection s;
	notify call;
	void *context;
	thread reader;
	int ended; /* by Unregister */
};

static void read_events(struct callback *c)
{
	char line[64];
	unsigned int type;
	long long size;

	while (!receive_line(c->s, line, sizeof line) && sscanf(line, "%u %lld", &type, &size) == 2) {
		wide *data = NULL;

		if (receive_text(c->s, size, &data))
			break;
		c->call(type, c->context, 0, data);
		release(data);
		if (type == SERVICE_DISCONNECT)
			return;
	}
	if (!c->ended)
		c->call(SERVICE_DISCONNECT, c->context, 0, NULL);
}

#ifdef _WIN32
static DWORD WINAPI run(void *c)
{
	read_events(c);
	return 0;
}
#else
static void *run(void *c)
{
	read_events(c);
	return NULL;
}
#endif

static HRESULT listen_for(const char *operation, void *network, notify call, void *context, void **handle)
{
	struct callback *c;
	HRESULT hr;

	if (!call || !handle)
		return FAILED_POINTER;
	c = calloc(1, sizeof *c);
	if (!c)
		return FAILED_MEMORY;
	c->call = call;
	c->context = context;
	c->s = dial();
	if (c->s == NO_CONNECTION) {
		free(c);
		return SERVER_UNAVAILABLE;
	}
	hr = ask(c->s, operation, (uint64_t)(uintptr_t)network, NULL, NULL, 0);
	if (!hr)
		hr = answer(c->s, NULL, NULL, NULL);
#ifdef _WIN32
	if (!hr && !(c->reader = CreateThread(NULL, 0, run, c, 0, NULL)))
		hr = FAILED_MEMORY;
#else
	if (!hr && pthread_create(&c->reader, NULL, run, c))
		hr = FAILED_MEMORY;
#endif
	if (hr) {
		hang_up(c->s);
		free(c);
		return hr;
	}
	*handle = c;
	return 0;
}

/* Not from inside the callback: it waits for one that runs. */
static HRESULT stop_listening(struct callback *c)
{
	if (!c)
		return FAILED_POINTER;
	c->ended = 1;
	shutdown(c->s, STOP_BOTH);
#ifdef _WIN32
	WaitForSingleObject(c->reader, INFINITE);
	CloseHandle(c->reader);
#else
	pthread_join(c->reader, NULL);
#endif
	hang_up(c->s);
	free(c);
	return 0;
}

EXPORT HRESULT CALL HcnRegisterServiceCallback(notify call, void *context, void **handle)
{
	return listen_for("RegisterServiceCallback", NULL, call, context, handle);
}

EXPORT HRESULT CALL HcnUnregisterServiceCallback(void *handle)
{
	return stop_listening(handle);
}

EXPORT HRESULT CALL HcnRegisterNetworkCallback(void *network, notify call, void *context, void **handle)
{
	return listen_for("RegisterNetworkCallback", network, call, context, handle);
}

EXPORT HRESULT CALL HcnUnregisterNetworkCallback(void *handle)
{
	return stop_listening(handle);
}

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
