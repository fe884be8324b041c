package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
)

const pushUsage = `wsbridge push (--connection ID | --user NAME | --group NAME | --all) [options] [message]

Sends one message through the wsbridge that runs here. The message is the argument, or what comes on standard input, as it stands,
where there is none or it is "-". Options stand before it; a message that begins with a dash stands behind "--".

`

const pushExits = `
A message to many prints how many connections there were and what became of it, as a line of JSON.

The exit status is
  0  queued; with --confirm: received by every client it was queued for
  1  wsbridge could not be asked, or refused the message (wrong token, too large)
  2  the command line or a setting is at fault; nothing was sent
  3  the connection is not open
  4  not confirmed in time, to many: not by all; the message may still arrive

` + pushEnvironment

const pushEnvironment = `Where wsbridge is, and its token, come from the variables that the service has: WSBRIDGE_PUSH_LISTEN (127.0.0.1:8081, or unix:/path), and
WSBRIDGE_PUSH_TOKEN or WSBRIDGE_PUSH_TOKEN_FILE.
`

// answerTime is how long a running wsbridge may take to answer, beyond what it is asked to wait itself.
const answerTime = 10 * time.Second

// push sends one message by way of a wsbridge that runs.
func push(ctx context.Context, args, environ []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("push", flag.ContinueOnError)
	flags.String("connection", "", "send to the connection with this `ID`")
	flags.String("user", "", "send to every connection of the user of this `NAME`")
	flags.String("group", "", "send to every connection in the group of this `NAME`")
	all := flags.Bool("all", false, "send to every connection")
	binary := flags.Bool("binary", false, "send a binary message; without it, text")
	confirm := flags.Duration("confirm", 0, "wait so long (`5s`, at most 1m) until the clients themselves have received it")
	flags.Duration("ttl", 0, "drop it if it could not be written within this time (`5s`)")
	flags.String("collapse", "", "take the place of a message with the same `KEY` that still waits for a slow client")
	flags.String("except", "", "leave out the connections with these `IDS`, which have commas between them")
	key := flags.String("idempotency-key", "", "repeat the first verdict on this `KEY` instead of sending twice, for 10 minutes")
	if help, err := parseFlags(flags, args, stdout, pushUsage, pushExits); help || err != nil {
		return err
	}

	var targets []*flag.Flag
	query := url.Values{}
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "connection", "user", "group":
			targets = append(targets, f)
		case "confirm", "ttl", "collapse", "except":
			query.Set(f.Name, f.Value.String())
		}
	})
	wrong := func(format string, a ...any) error { return wrongCommand(flags, format, a...) }
	if len(targets) > 1 || (len(targets) == 1) == *all {
		return wrong("use one of --connection, --user, --group and --all")
	}
	route, one := "/connections", false
	if !*all {
		target := targets[0]
		name := target.Value.String()
		if name == "" || name == "." || name == ".." {
			return wrong("--%s %q: no %s has this name", target.Name, name, target.Name)
		}
		route, one = "/"+target.Name+"s/"+url.PathEscape(name), target.Name == "connection"
	}
	if one && query.Has("except") {
		return wrong("--except %s: a message to one connection leaves nobody out; use it with --user, --group or --all", query.Get("except"))
	}
	if flags.NArg() > 1 {
		return wrong("%q: there can be one message; quote it, and put options before it", flags.Args())
	}
	header := http.Header{"Content-Type": {"text/plain; charset=utf-8"}}
	if *binary {
		header.Set("Content-Type", "application/octet-stream")
	}
	if isSet(flags, "idempotency-key") {
		if strings.TrimSpace(*key) != *key || !printable(*key) {
			return wrong("--idempotency-key %q: use printable ASCII without space around it", *key)
		}
		header.Set("Idempotency-Key", *key)
	}
	p, err := newPusher(environ, *confirm+answerTime)
	if err != nil {
		return err
	}
	var body io.Reader
	if text := flags.Arg(0); flags.NArg() == 1 && text != "-" {
		body = strings.NewReader(text)
	} else {
		body = piped(ctx, stdin)
	}
	if len(query) > 0 {
		route += "?" + query.Encode()
	}
	status := http.StatusAccepted
	if query.Has("confirm") {
		status = http.StatusOK
	}
	content, err := p.ask(ctx, http.MethodPost, route, header, body, status)
	if err != nil || one {
		return err
	}
	var verdict struct {
		Matched, Queued int
		Confirmed       *int
	}
	if err := json.Unmarshal(content, &verdict); err != nil {
		return p.stranger(err)
	}
	fmt.Fprintln(stdout, strings.TrimSpace(string(content)))
	if verdict.Confirmed != nil && *verdict.Confirmed < verdict.Queued {
		return refusal{exitUnconfirmed, fmt.Sprintf("%d of %d clients have confirmed the message in time; the others may still get it", *verdict.Confirmed, verdict.Queued)}
	}
	return nil
}

// piped returns what is read from outside, until ctx ends: nothing else interrupts a read of a terminal, and the transport waits for it.
// A failure to read is told as unreadable.
func piped(ctx context.Context, from io.Reader) io.Reader {
	reader, writer := io.Pipe()
	go func() { // until the next byte or the end, which may be that of the process
		if _, err := io.Copy(writer, from); err != nil {
			writer.CloseWithError(unreadable{err})
			return
		}
		writer.Close()
	}()
	context.AfterFunc(ctx, func() { writer.CloseWithError(context.Cause(ctx)) })
	return reader
}

type unreadable struct{ error }

// parseFlags reads a command line, and prints the help if it asks for that.
func parseFlags(flags *flag.FlagSet, args []string, stdout io.Writer, before, behind string) (help bool, err error) {
	flags.SetOutput(io.Discard) // an error is the caller's to print
	err = flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, before)
		table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
		flags.VisitAll(func(f *flag.Flag) {
			value, usage := flag.UnquoteUsage(f)
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
				value = ""
			}
			fmt.Fprintf(table, "  %s\t%s\n", strings.TrimSpace("--"+f.Name+" "+value), usage)
		})
		table.Flush()
		fmt.Fprint(stdout, behind)
		return true, nil
	case err != nil:
		return false, wrongCommand(flags, "%v", err)
	}
	return false, nil
}

func wrongCommand(flags *flag.FlagSet, format string, args ...any) error {
	return fault{Variable: flags.Name(), Problem: fmt.Sprintf(format, args...) + " (wsbridge " + flags.Name() + " --help)"}
}

func isSet(flags *flag.FlagSet, name string) bool {
	set := false
	flags.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// refusal is what a running wsbridge says against what it was asked, and the exit code for that.
type refusal struct {
	exit   int
	detail string
}

func (r refusal) Error() string { return r.detail }

// pusher asks the push side of a running wsbridge.
type pusher struct {
	address, token string
	transport      *http.Transport
}

// newPusher returns a pusher for the environment. Answers may take as long as patience says.
func newPusher(environ []string, patience time.Duration) (*pusher, error) {
	address, token, faults := parsePush(environ)
	if len(faults) > 0 {
		return nil, errors.Join(faultsAsErrors(faults)...)
	}
	p := &pusher{address, token, transportTo(address)}
	p.transport.ResponseHeaderTimeout = patience // counts from the end of the body
	return p, nil
}

// transportTo returns a transport that takes every request to the address of a listener. It is dialed as it would be bound: an empty
// host, or that of all interfaces, is this machine.
func transportTo(address string) *http.Transport {
	dialer := net.Dialer{Timeout: answerTime}
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			network, place, err := splitAddress(address)
			if err != nil {
				return nil, err
			}
			return dialer.DialContext(ctx, network, place)
		},
	}
}

// ask sends a request and returns the body of the answer, which must have this status.
func (p *pusher) ask(ctx context.Context, method, route string, header http.Header, body io.Reader, status int) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A loopback name in Host is what is let in without a token.
	request, err := http.NewRequestWithContext(ctx, method, "http://localhost"+route, body)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	if p.token != "" {
		request.Header.Set("Authorization", "Bearer "+p.token)
	}
	answer, err := p.transport.RoundTrip(request)
	if err != nil {
		return nil, p.failure(err)
	}
	defer answer.Body.Close()
	stalled := time.AfterFunc(p.transport.ResponseHeaderTimeout, func() { cancel(errors.New("the answer breaks off")) })
	defer stalled.Stop()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, p.failure(err)
	}
	if answer.StatusCode != status {
		return nil, p.refused(answer, content)
	}
	return content, nil
}

// failure says why there is no answer.
func (p *pusher) failure(err error) error {
	if stdin, ok := errors.AsType[unreadable](err); ok {
		return fmt.Errorf("the message can't be read, and was not sent: %w", stdin.error)
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return fmt.Errorf("no wsbridge answers at WSBRIDGE_PUSH_LISTEN=%s (%w): start it, or set the variable as it has it", p.address, err)
	}
	return fmt.Errorf("no answer from WSBRIDGE_PUSH_LISTEN=%s (%w): whether it has done what it was asked is not known", p.address, err)
}

// stranger is the error of an answer that is none of wsbridge's.
func (p *pusher) stranger(err error) error {
	return fmt.Errorf("what answers at WSBRIDGE_PUSH_LISTEN=%s is no wsbridge: %w", p.address, err)
}

// refused says what an answer has against the request.
func (p *pusher) refused(answer *http.Response, content []byte) error {
	var problem struct{ Detail, Field string }
	media, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if media != "application/problem+json" || json.Unmarshal(content, &problem) != nil {
		return p.stranger(fmt.Errorf("it says %s", answer.Status))
	}
	r := refusal{exitFailure, cmp.Or(problem.Detail, answer.Status)}
	if !strings.Contains(r.detail, problem.Field) {
		r.detail = problem.Field + ": " + r.detail
	}
	switch answer.StatusCode {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		r.exit = exitSettings
	case http.StatusUnauthorized:
		r.detail = fmt.Sprintf("wsbridge at WSBRIDGE_PUSH_LISTEN=%s asks for another token: set WSBRIDGE_PUSH_TOKEN, or WSBRIDGE_PUSH_TOKEN_FILE, as it has it", p.address)
	case http.StatusGone:
		r.exit = exitGone
	case http.StatusGatewayTimeout:
		r.exit = exitUnconfirmed
	}
	return r
}
