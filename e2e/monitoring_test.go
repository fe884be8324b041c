package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestWhatIsMonitoredExists holds the alerts and the dashboard against what the program tells from its first moment.
func TestWhatIsMonitoredExists(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool", "prometheus")
	b := newBackend(t, nil)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL)
	_, metrics := request(t, "GET", "http://"+s.pushes+"/metrics", nil, "")

	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(metrics)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	if out, err := exec.Command(promtool, "check", "rules", "../monitoring/alerts.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}

	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../monitoring/grafana.json")
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil || len(dashboard.Panels) == 0 {
		t.Fatalf("the dashboard: %v, %d panels", err, len(dashboard.Panels))
	}
	alerts, err := os.ReadFile("../monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	expressions := map[string]string{}
	for _, match := range regexp.MustCompile(`alert: (\w+)\n +expr: (.*)`).FindAllStringSubmatch(string(alerts), -1) {
		expressions[match[1]] = match[2]
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			expressions[panel.Title+": "+target.Expr] = target.Expr
			if strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") {
				t.Errorf("panel %s: %s", panel.Title, target.Expr)
			}
		}
	}
	series := regexp.MustCompile(`\b((?:wsbridge|process|go)_[a-z_]+)(\{[^}]*\})?`)
	label := regexp.MustCompile(`(\w+)(=~?)"([^"]*)"`)
	looked := 0
	for where, expression := range expressions {
		for _, match := range series.FindAllStringSubmatch(expression, -1) {
			name := match[1]
			lines := slices.DeleteFunc(strings.Split(metrics, "\n"), func(line string) bool {
				return !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ")
			})
			if len(lines) == 0 {
				t.Errorf("%s: there is no metric %s", where, name)
			}
			looked++
			for _, condition := range label.FindAllStringSubmatch(match[2], -1) {
				if condition[1] == "instance" || condition[1] == "job" { // Prometheus' own
					continue
				}
				for value := range strings.SplitSeq(condition[3], "|") {
					if want := condition[1] + `="` + value + `"`; !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, want) }) {
						t.Errorf("%s: %s never has %s", where, name, want)
					}
				}
			}
		}
	}
	if looked < 30 {
		t.Errorf("only %d series were looked at", looked)
	}
}
