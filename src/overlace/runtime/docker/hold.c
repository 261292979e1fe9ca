/* The first program of a container that Docker Engine runs for overlace: waits until the container's network is
 * attached, which the file "go" beside this program says, and then becomes the program the container is for.
 *
 * Docker makes a container's network namespace and starts its program in one step, so without this the program would
 * run for a moment with no interface and no names. Static: the image may hold nothing else. Arguments: the command line
 * to become. Exit codes of what cannot be run are the shell's and Docker's own: 127 not found, 126 not executable.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define FOLDER "/.overlace"
#define GO FOLDER "/go"
#define LOOK_AGAIN_MS 50 /* should the kernel have no inotify watch left for us */

static void stopped(int number)
{
	_exit(128 + number);
}

int main(int argc, char **argv)
{
	struct pollfd changed = { .fd = -1, .events = POLLIN };
	char events[4096];

	if (argc < 2) {
		fprintf(stderr, "overlace: no command to run\n");
		return 125;
	}
	/* The first process of a PID namespace ignores what it does not handle; a container must stop when told to, also
	 * while it waits. exec(2) puts the handlers back. */
	for (int number = 1; number < 32; number++)
		if (number != SIGKILL && number != SIGSTOP && number != SIGCHLD && number != SIGWINCH)
			signal(number, stopped);
	changed.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (changed.fd >= 0)
		inotify_add_watch(changed.fd, FOLDER, IN_CREATE | IN_MOVED_TO);
	while (access(GO, F_OK) != 0) {
		poll(&changed, changed.fd >= 0, LOOK_AGAIN_MS);
		while (changed.fd >= 0 && read(changed.fd, events, sizeof events) > 0)
			;
	}
	for (int number = 1; number < 32; number++)
		if (number != SIGKILL && number != SIGSTOP)
			signal(number, SIG_DFL);
	execvp(argv[1], argv + 1);
	fprintf(stderr, "exec: \"%s\": %s\n", argv[1],
		errno == ENOENT ? "executable file not found in $PATH" : strerror(errno));
	return errno == ENOENT ? 127 : 126;
}
