/* HCN's callbacks: a connection and a thread each, until it is unregistered or the service goes away. Must not know what
 * an event means.
 */
#include "stand_in.h"

#ifndef VMCOMPUTE

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
