# The PSGI application APP: each event is a line of the file RECORD before the application sees it.
use v5.20;
use warnings;
use Plack::Util;

my $app = Plack::Util::load_psgi($ENV{APP});
open my $record, '>>', $ENV{RECORD} or die "$ENV{RECORD}: $!";
sub {
    my ($env) = @_;
    syswrite $record, join(' ', map { $env->{"HTTP_CE_$_"} // '' } qw(TYPE ID ATTEMPT)) . "\n";
    return $app->($env);
};
