# A chat backend for PSGI. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens.
use v5.20;
use warnings;
use Digest::SHA qw(hmac_sha256);
use HTTP::Tiny;
use MIME::Base64 qw(decode_base64 encode_base64);
use Plack::Request;

my $secret   = decode_base64(($ENV{SECRET} // die "SECRET is not set\n") =~ s/^whsec_//r);
my $push_url = $ENV{PUSH_URL} // 'http://127.0.0.1:8081';
my @text     = ('Content-Type' => 'text/plain; charset=utf-8');

# In constant time: the number of bits that differ.
sub same { my ($this, $that) = @_; length $this == length $that && unpack('%32b*', $this ^ $that) == 0 }

sub is_signed {
    my ($request) = @_;
    my ($id, $timestamp, $signatures) = map { $request->header("webhook-$_") // '' } qw(id timestamp signature);
    my $expected = 'v1,' . encode_base64(hmac_sha256("$id.$timestamp." . $request->content, $secret), '');
    my $matches  = grep { same($expected, $_) } split / /, $signatures;    # several while secrets are rotated
    return $matches && abs(time - $timestamp) <= 300;
}

my $app = sub {
    my $request = Plack::Request->new(shift);
    return [401, [], []] unless is_signed($request);
    my ($event, $body) = ($request->header('ce-type'), $request->content);

    if ($event eq 'wsbridge.connect') {
        my $user = $request->query_parameters->{user};    # yours comes from the session: its cookie is here
        my @user = defined $user && $user =~ /\A[!-~]+\z/ ? ('Ws-User' => $user) : ();    # a line break would begin another header
        return [200, [@text, 'Ws-Join' => 'lobby', @user], ['welcome']];
    }
    if ($event eq 'wsbridge.message') {
        if ($body =~ s/\Apush //) {
            my $url = "$push_url/connections/" . $request->header('ce-connectionid');
            HTTP::Tiny->new->post($url, {headers => {'Content-Type' => 'text/plain'}, content => $body});    # 410: the client has just left
            return [204, [], []];
        }
        return [200, \@text, [($request->header('ce-userid') // 'somebody') . ": $body"]];
    }
    return [204, [], []];    # disconnect: the body says why, as JSON
};
