package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

const connectionsUsage = `wsbridge connections [--user NAME] [--group NAME] [--json]
wsbridge connections ID

Lists the connections that are open in the wsbridge that runs here, those that are open the longest first: how many messages wait for the
client, how many have come from it and gone to it, and more with --json. With an ID it shows that one, as JSON.

`

const connectionsExits = `
The exit status is
  0  listed
  1  wsbridge could not be asked, or refused it (wrong token)
  2  the command line or a setting is at fault
  3  the connection is not open

` + pushEnvironment

// connection is what the table shows of one.
type connection struct {
	ID      string
	Opening bool
	User    string
	Groups  []string
	Address string
	Path    string
	Since   time.Time
	Queue   struct{ Messages int }
	In      uint64 `json:"messages_in"`
	Out     uint64 `json:"messages_out"`
}

// connections lists the connections of a wsbridge that runs, or shows one.
func connections(ctx context.Context, args, environ []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("connections", flag.ContinueOnError)
	flags.String("user", "", "only those of the user of this `NAME`")
	flags.String("group", "", "only those in the group of this `NAME`")
	asJSON := flags.Bool("json", false, "print each as a line of JSON")
	if help, err := parseFlags(flags, args, stdout, connectionsUsage, connectionsExits); help || err != nil {
		return err
	}
	query := url.Values{}
	for _, name := range []string{"user", "group"} {
		if value := flags.Lookup(name).Value.String(); value != "" {
			query.Set(name, value)
		} else if isSet(flags, name) { // by a variable of a script that is empty; all connections are not what it wants
			return wrongCommand(flags, "--%s %q: no %s has this name", name, value, name)
		}
	}
	id := flags.Arg(0)
	switch {
	case flags.NArg() > 1:
		return wrongCommand(flags, "%q: one ID can be shown; options stand before it", flags.Args())
	case flags.NArg() == 1 && (id == "" || id == "." || id == ".."):
		return wrongCommand(flags, "%q is no ID", id)
	case flags.NArg() == 1 && len(query) > 0:
		return wrongCommand(flags, "use an ID, or --user and --group")
	}
	p, err := newPusher(environ, answerTime)
	if err != nil {
		return err
	}
	if flags.NArg() == 1 {
		content, err := p.ask(ctx, http.MethodGet, "/connections/"+url.PathEscape(id), nil, nil, http.StatusOK)
		if err != nil {
			return err
		}
		if !json.Valid(content) {
			return p.stranger(errors.New("it says no JSON"))
		}
		return printJSON(stdout, content)
	}

	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	if !*asJSON {
		fmt.Fprintln(table, "ID\tUSER\tGROUPS\tADDRESS\tPATH\tSINCE\tQUEUE\tIN/OUT")
	}
	query.Set("limit", "1000")
	for {
		content, err := p.ask(ctx, http.MethodGet, "/connections?"+query.Encode(), nil, nil, http.StatusOK)
		if err != nil {
			return err
		}
		var page struct {
			Connections []json.RawMessage
			Next        string
		}
		if err := json.Unmarshal(content, &page); err != nil {
			return p.stranger(err)
		}
		for _, one := range page.Connections {
			if *asJSON {
				err = printJSON(stdout, one)
			} else {
				err = printRow(table, one)
			}
			if err != nil {
				return err
			}
		}
		if page.Next == "" {
			return table.Flush()
		}
		query.Set("after", page.Next)
	}
}

func printJSON(w io.Writer, content []byte) error {
	var line bytes.Buffer
	if err := json.Compact(&line, content); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, &line)
	return err
}

func printRow(w io.Writer, content []byte) error {
	var c connection
	if err := json.Unmarshal(content, &c); err != nil {
		return err
	}
	user := cmp.Or(c.User, "-")
	if c.Opening {
		user = "(opening)"
	}
	// A client chooses its path, and may have put there what steers a terminal.
	path := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, c.Path)
	_, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d/%d\n", c.ID, user, cmp.Or(strings.Join(c.Groups, ","), "-"), c.Address, path,
		c.Since.UTC().Format(time.RFC3339), c.Queue.Messages, c.In, c.Out)
	return err
}
