// Command wsbridge gives a plain HTTP service realtime push: it terminates WebSocket connections, POSTs what clients send to the
// service, and brings the service's answers and pushes to the clients. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

const usage = `wsbridge [command]

  (none)       serve, configured by WSBRIDGE_… variables; WSBRIDGE_BACKEND_URL is all that is required
  demo         run a chat to try: sidecar, application and page
  check        say whether this environment would start, and whether the backend answers
  push         send a message to a connection, a user, a group or everyone (wsbridge push --help)
  reload       let the running wsbridge go on with the program on disk and this environment; no connection is lost (wsbridge reload --help)
  connections  list the connections that are open (wsbridge connections --help)
  env          print the settings as an environment file
  version      print the version
`

// The exit codes.
const (
	exitFailure     = 1 // it could not start, was stopped before it had drained, or could not be asked
	exitSettings    = 2 // a setting or the command line is at fault; nothing was started
	exitGone        = 3 // the connection is not open
	exitUnconfirmed = 4 // not every client has confirmed the message in time
)

func main() {
	// net/http's client quotes what a backend sends unasked to the standard logger, and nothing of ours writes there.
	log.SetOutput(io.Discard)
	if os.Getenv("GOGC") == "" {
		new(pace).set()
		go giveBack()
	}
	// A SIGHUP reloads what has a holder, unless it says that the terminal is gone.
	held, _ := parse(os.Environ())
	ctx, stop := untilSignal(context.Background(), len(os.Args) > 1 || held.Process.Holder != "on" || terminal())
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// untilSignal returns a context that ends with the first SIGTERM or SIGINT, and SIGHUP if that ends it. The second ends the process at once.
func untilSignal(ctx context.Context, hangup bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2) // the first may still be in there when the second comes
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	if hangup {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() { // as long as the process
		cancel(fmt.Errorf("%s", <-signals))
		second := <-signals
		fmt.Fprintf(os.Stderr, "wsbridge: a second signal (%s): ended without draining\n", second)
		os.Exit(exitFailure)
	}()
	return ctx, func() { signal.Stop(signals) }
}

// run runs one command and returns its exit code.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	if len(args) > 0 && !slices.Contains([]string{"demo", "push", "connections", "reload"}, command) {
		fmt.Fprintf(stderr, "wsbridge: %s takes no arguments, not %q\n\n%s", command, args, usage)
		return exitSettings
	}
	var err error
	switch command {
	case "":
		err = serveEnvironment(ctx, environ, stdout, stderr)
	case workerCommand:
		err = work(environ, stderr)
	case "demo":
		err = demo(ctx, args, stdout, stderr)
	case "check":
		return check(ctx, environ, stdout)
	case "push":
		err = push(ctx, args, environ, stdin, stdout)
	case "connections":
		err = connections(ctx, args, environ, stdout)
	case "reload":
		err = reload(ctx, args, environ, stdout)
	case "env":
		err = errors.Join(faultsAsErrors(printEnv(stdout, environ))...)
	case "version":
		fmt.Fprintln(stdout, version())
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
	default:
		fmt.Fprintf(stderr, "wsbridge: there is no command %q\n\n%s", command, usage)
		return exitSettings
	}
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exited](err); ok {
		return int(code) // it has said why
	}
	for line := range strings.Lines(err.Error() + "\n") {
		fmt.Fprint(stderr, "wsbridge: ", line)
	}
	if _, ok := errors.AsType[fault](err); ok {
		return exitSettings
	}
	if r, ok := errors.AsType[refusal](err); ok {
		return r.exit
	}
	return exitFailure
}

func faultsAsErrors(faults []fault) []error {
	errs := make([]error, len(faults))
	for i, f := range faults {
		errs[i] = f
	}
	return errs
}
