package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"wsbridge/holder"
)

const reloadUsage = "wsbridge reload [pid]"

// reload lets a running wsbridge go on with the program that is on disk now and with this environment. It returns when the new worker serves, or says
// why the old one goes on. The settings are looked at before anything is touched.
func reload(ctx context.Context, args, environ []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("wsbridge reload", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "%s\n\nLets a running wsbridge, the only one of this user or the one with that process id, go on with the program on disk and the environment of this command.\n"+
			"Its connections stay. The exit code is 0 once the new version serves; otherwise the old one goes on.\n", reloadUsage)
		return nil
	}
	pid := 0
	if err == nil && flags.NArg() > 1 {
		err = fmt.Errorf("takes one process id, not %q", flags.Args())
	}
	if text := mainPID(flags.Args(), environ); err == nil && text != "" {
		if pid, err = strconv.Atoi(text); err != nil || pid <= 0 {
			err = fmt.Errorf("%q is no process id", text)
		}
	}
	if err != nil {
		return fault{Variable: "reload", Problem: fmt.Sprintf("%v; usage: %s", err, reloadUsage)}
	}
	if _, faults := parse(environ); len(faults) > 0 {
		return errors.Join(faultsAsErrors(faults)...)
	}
	return holder.Reload(ctx, pid, environ)
}

// mainPID returns the process id that an argument gives, or systemd for its ExecReload=.
func mainPID(args, environ []string) string {
	if len(args) > 0 {
		return args[0]
	}
	for _, line := range environ {
		if value, ok := strings.CutPrefix(line, "MAINPID="); ok {
			return value
		}
	}
	return ""
}

// terminal reports whether a terminal controls this process.
func terminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	tty.Close()
	return true
}
