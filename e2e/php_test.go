package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// startPHP runs PHP's own server on the scripts of testdata, and returns its address.
func startPHP(t *testing.T, env ...string) string {
	t.Helper()
	php := start(t, env, tool(t, "php", "php-cli"), "-d", "session.save_path="+tempDir(t), "-S", "127.0.0.1:0", "-t", "testdata")
	line := php.awaitLine(t, "Development Server (http://")
	_, address, _ := strings.Cut(line, "(http://")
	address, _, _ = strings.Cut(address, ")")
	return address
}

func startChat(t *testing.T) *sidecar {
	t.Helper()
	push := "127.0.0.1:" + freePort(t) // the script is told of it before the sidecar runs
	php := startPHP(t, "PUSH=http://"+push)
	return serve(t, "WSBRIDGE_BACKEND_URL=http://"+php+"/chat.php", "WSBRIDGE_PUSH_LISTEN="+push)
}

func TestAPHPScriptIsAChat(t *testing.T) {
	t.Parallel()
	s := startChat(t)
	ada := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/?name=Ada", nil)
	ada.hears(t, websocket.TextMessage, "Welcome, Ada")
	bob := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/?name=Bob", nil)
	bob.hears(t, websocket.TextMessage, "Welcome, Bob")
	ada.hears(t, websocket.TextMessage, "Bob is here")

	ada.says(t, websocket.TextMessage, "grüß dich")
	ada.hears(t, websocket.TextMessage, "You: grüß dich")
	bob.hears(t, websocket.TextMessage, "Ada: grüß dich")

	// The disconnect event brings the code and, by its cookie, the name.
	bob.leaves(t, 1000)
	ada.hears(t, websocket.TextMessage, "Bob has left (1000)")
}

// The name stands in the session alone from the first event on: the later ones find it by the cookie, and so does another handshake.
func TestThePHPSessionOfTheHandshakeReachesEveryEvent(t *testing.T) {
	t.Parallel()
	s := startChat(t)
	first := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/?name=Ada", nil)
	first.hears(t, websocket.TextMessage, "Welcome, Ada")
	var session *http.Cookie
	for _, cookie := range first.handshake.Cookies() {
		if cookie.Name == "PHPSESSID" {
			session = cookie
		}
	}
	if session == nil {
		t.Fatalf("the 101 sets no session cookie: %v", first.handshake.Header)
	}

	again := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/", http.Header{"Cookie": {"theme=dark; " + session.Name + "=" + session.Value}})
	again.hears(t, websocket.TextMessage, "Welcome, Ada")
	first.hears(t, websocket.TextMessage, "Ada is here")
	again.says(t, websocket.TextMessage, "me again")
	again.hears(t, websocket.TextMessage, "You: me again")
	first.hears(t, websocket.TextMessage, "Ada: me again")
}

func TestAPHPScriptRefusesAClientWithAnAnswerOfItsOwn(t *testing.T) {
	t.Parallel()
	s := startChat(t)
	resp, body := refused(t, websocket.Dialer{}, "ws://"+s.clients+"/", nil)
	if resp.StatusCode != http.StatusUnauthorized || body != "Who are you?\n" {
		t.Errorf("refusal = %s %q, want 401 with the script's words", resp.Status, body)
	}
	if got, want := resp.Header.Get("WWW-Authenticate"), `Name realm="chat"`; got != want {
		t.Errorf("WWW-Authenticate = %q, want %q", got, want)
	}
}

func TestAPHPScriptOfOneStatementIsABackend(t *testing.T) {
	t.Parallel()
	php := startPHP(t)
	s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+php+"/shout.php", "WSBRIDGE_BACKEND_EVENTS=message")
	c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/", nil)
	for _, word := range []string{"hello", "there"} {
		c.says(t, websocket.TextMessage, word)
		c.hears(t, websocket.TextMessage, strings.ToUpper(word))
	}
	// The script would answer a connect event with an empty body and a disconnect event with JSON in capitals; it is sent neither.
	c.leaves(t, 1000)
}
