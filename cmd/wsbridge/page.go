package main

import (
	_ "embed"
	"encoding/json"
	"net/http"
	"strings"
)

//go:embed page.html
var pageHTML string

// pageFacts is what the live page is told with it; the rest it asks for.
type pageFacts struct {
	Version  string        `json:"version"`
	Node     string        `json:"node"`
	Backend  string        `json:"backend"`
	Settings []pageSetting `json:"settings"`
}

type pageSetting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Usage string `json:"usage"`
	Set   bool   `json:"set"`
}

// livePage is what a person sees at the local listener. Of secrets it tells whether they are set.
func livePage(s settings, environ []string) http.Handler {
	facts := pageFacts{Version: version(), Node: s.Process.Node, Backend: withoutPassword(s.Backend.URL.String())}
	values := variables(environ)
	for _, g := range groups(&s) {
		for _, one := range g.Settings {
			row := pageSetting{Name: one.Name, Usage: one.Usage, Value: one.inEffect()}
			if value, set := values[one.Name]; set {
				row.Value, row.Set = withoutPassword(value), true
			}
			if file, set := values[one.Name+"_FILE"]; set && one.Secret {
				row.Value, row.Set = "(from "+file+")", true
			} else if one.Secret && row.Set {
				row.Value = "(set)"
			}
			facts.Settings = append(facts.Settings, row)
		}
	}
	text, _ := json.Marshal(facts) // it escapes what could end the element that it stands in
	return servePage(strings.Replace(pageHTML, `id="facts">{}<`, `id="facts">`+string(text)+`<`, 1))
}
