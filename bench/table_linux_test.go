package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// docs is the variable that names the file whose tables are written anew, each between the lines <!-- bench NAME --> and <!-- end -->.
const docs = "WSBRIDGE_BENCH_DOCS"

// table is one of them.
type table struct {
	head   []string
	rows   [][]string
	axis   string // of its curve, of which the first column is the x; empty: none is drawn
	unit   string
	beside int // the column that is drawn beside wsbridge's
}

// tables are those that have been measured, by name.
var tables = map[string]*table{}

// tabulate adds a row to a table.
func tabulate(name string, head []string, row ...string) *table {
	t := tables[name]
	if t == nil {
		t = &table{head: head}
		tables[name] = t
	}
	t.rows = append(t.rows, row)
	return t
}

// markdown returns the table and its curve, which Markdown viewers draw that know Mermaid.
func (t *table) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, row := range t.rows {
		fmt.Fprintf(&text, "| %s |\n", strings.Join(row, " | "))
	}
	if t.axis == "" {
		return text.String()
	}
	var places, ours, theirs []string
	for _, row := range t.rows {
		if row[t.beside] != "" {
			places, ours, theirs = append(places, fmt.Sprintf("%q", row[0])), append(ours, row[1]), append(theirs, row[t.beside])
		}
	}
	fmt.Fprintf(&text, "\n```mermaid\nxychart-beta\n  title \"%s: first wsbridge, second %s\"\n  x-axis \"%s\" [%s]\n  y-axis \"%s\"\n  line [%s]\n  line [%s]\n```\n",
		t.unit, t.head[t.beside], t.axis, strings.Join(places, ", "), t.unit, strings.Join(ours, ", "), strings.Join(theirs, ", "))
	return text.String()
}

// writeTables writes them into the file, where it has a place for each.
func writeTables(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	whole := string(text)
	for name, t := range tables {
		mark := "<!-- bench " + name + " -->\n"
		before, rest, found := strings.Cut(whole, mark)
		_, after, ended := strings.Cut(rest, "<!-- end -->")
		if !found || !ended {
			return fmt.Errorf("%s has no place for the table %s: %s…<!-- end -->", file, name, mark)
		}
		whole = before + mark + "\n" + t.markdown() + "\n<!-- end -->" + after
	}
	return os.WriteFile(file, []byte(whole), 0o644)
}

func TestATableTakesThePlaceOfTheOneBefore(t *testing.T) {
	file := t.TempDir() + "/docs.md"
	text := "before\n<!-- bench a -->\nold\n<!-- end -->\nafter\n<!-- bench b -->\nkept\n<!-- end -->\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func(old map[string]*table) { tables = old }(tables)
	tables = map[string]*table{}
	tabulate("a", []string{"clients", "wsbridge"}, "64", "1.0")
	tabulate("a", nil, "512", "2.0")
	if err := writeTables(file); err != nil {
		t.Fatal(err)
	}
	want := "before\n<!-- bench a -->\n\n| clients | wsbridge |\n|---|---|\n| 64 | 1.0 |\n| 512 | 2.0 |\n\n<!-- end -->\nafter\n<!-- bench b -->\nkept\n<!-- end -->\n"
	if got, _ := os.ReadFile(file); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	tabulate("c", []string{"x"}, "1")
	if err := writeTables(file); err == nil {
		t.Error("a table without a place is no error")
	}
}
