package main

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// printEnv prints the settings as an environment file: what is set, and as comments the defaults of all others. A secret is never
// printed. It returns the faults of the environment, which don't keep it from printing.
func printEnv(w io.Writer, environ []string) []fault {
	s, faults := parse(environ)
	writeEnv(w, groups(&s), variables(environ))
	return faults
}

// writeEnv writes the environment file. Where values holds nothing for a setting, its default stands there, or what was chosen in its
// stead.
func writeEnv(w io.Writer, all []group, values map[string]string) {
	out := bufio.NewWriter(w)
	defer out.Flush()
	comment(out, "The settings of wsbridge, as systemd's EnvironmentFile= reads them. A line that is commented out shows what holds "+
		"without it; remove its # to change it. The values of secrets are left out. `wsbridge check` finds mistakes before a restart does.")
	for _, g := range all {
		fmt.Fprintf(out, "\n\n# ---- %s ----\n", g.Title)
		for _, one := range g.Settings {
			fmt.Fprintln(out)
			usage := one.Usage
			if one.Required {
				usage += " (required)"
			}
			comment(out, usage)
			value, set := values[one.Name]
			switch {
			case set && one.Secret:
				fmt.Fprintf(out, "#%s=(set)\n", one.Name)
			case set:
				fmt.Fprintf(out, "%s=%s\n", one.Name, quoted(withoutPassword(value)))
			default:
				fmt.Fprintf(out, "#%s=%s\n", one.Name, quoted(one.inEffect()))
			}
			if !one.Secret {
				continue
			}
			comment(out, "or the file that holds it")
			if file, set := values[one.Name+"_FILE"]; set {
				fmt.Fprintf(out, "%s_FILE=%s\n", one.Name, quoted(file))
			} else {
				fmt.Fprintf(out, "#%s_FILE=\n", one.Name)
			}
		}
	}
}

// inEffect returns the value of a setting that was left open.
func (s setting) inEffect() string {
	switch {
	case s.Default != "" || s.Secret || s.Value.IsZero():
		return s.Default
	case s.Value.Kind() != reflect.Slice:
		return fmt.Sprint(s.Value.Interface())
	}
	var items []string
	for i := range s.Value.Len() {
		items = append(items, fmt.Sprint(s.Value.Index(i).Interface()))
	}
	return strings.Join(items, ",")
}

// quoted returns a value as it must stand in the file. Systemd and a shell agree on double quotes.
func quoted(value string) string {
	plain := func(r rune) bool {
		return 'a' <= r|0x20 && r|0x20 <= 'z' && r < 0x80 || '0' <= r && r <= '9' || strings.ContainsRune("_-+./:,@%=*", r)
	}
	if !strings.ContainsFunc(value, func(r rune) bool { return !plain(r) }) {
		return value
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`).Replace(value) + `"`
}

// comment writes text in lines of at most 100 bytes.
func comment(w io.Writer, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 100 && line != "#" {
			fmt.Fprintln(w, line)
			line = "#"
		}
		line += " " + word
	}
	fmt.Fprintln(w, line)
}
