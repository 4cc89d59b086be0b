# What somebody tries who is root in a VM: frames that claim to be somebody else, then sockets with another address,
# another hardware address and IPv6. Perl, because every guest has it and it takes raw sockets as they are.
#
# intruder.pl DEVICE MARK ADDRESSES TCP_PORTS UDP_PORTS: lists with commas. All that is sent carries MARK and the name of
# its kind. Prints `sent <kind>` for each kind of frame, `answer <what>` for what must not come, and `done` at the end.
use strict;
use warnings;
use Errno qw(EINPROGRESS);
use Fcntl;
use Socket qw(:DEFAULT :addrinfo inet_pton inet_ntop pack_sockaddr_in6 IPPROTO_TCP);

my ($device, $mark, @lists) = @ARGV;
my ($addresses, $tcp_ports, $udp_ports) = map { [split /,/] } @lists;
my @v4 = grep { !/:/ } @$addresses;
my @v6 = grep { /:/ } @$addresses;

use constant { PF_PACKET => 17, ETH_P_ALL => 3, OUTGOING => 4 };
use constant { ICMP => 1, IPIP => 4, TCP => 6, UDP => 17, GRE => 47, ICMP6 => 58 };
# Of the gateway, of this VM and of nobody.
my ($gateway_mac, $own_mac, $false_mac) = map { pack 'C6', 0x02, 0xfc, 0, 0, 0, $_ } 6, 5, 0x99;
my ($gateway, $own, $stranger) = ('169.254.0.22', '169.254.0.21', '10.9.9.9');
my $everybody = "\xff" x 6;
# Seconds.
my ($quiet, $patience) = (2, 15);

sub sum {
    my $bytes = shift;
    $bytes .= "\0" if length($bytes) % 2;
    my $sum = 0;
    $sum += $_ for unpack 'n*', $bytes;
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    return ~$sum & 0xffff;
}

sub ether { my ($to, $from, $type, $body) = @_; return pack('a6 a6 n', $to, $from, $type) . $body; }

sub ip4 {
    my ($from, $to, $protocol, $body, $options) = (@_, '');
    my $words = 5 + length($options) / 4;
    my @fields = (0x40 | $words, 0, $words * 4 + length $body, 1, 0, 64, $protocol);
    my ($source, $target) = (inet_aton($from), inet_aton($to));
    my $head = pack('C C n n n C C n a4 a4', @fields, 0, $source, $target) . $options;
    return pack('C C n n n C C n a4 a4', @fields, sum($head), $source, $target) . $options . $body;
}

sub ip6 {
    my ($from, $to, $protocol, $body) = @_;
    return pack('N n C C a16 a16', 0x60000000, length $body, $protocol, 255, $from, $to) . $body;
}

# With the checksum at its place; `$from` and `$to` are packed.
sub summed {
    my ($from, $to, $protocol, $at, $body) = @_;
    my $sum = sum($from . $to . pack('N N', length $body, $protocol) . $body);
    substr $body, $at, 2, pack 'n', $sum || 0xffff;
    return $body;
}

sub udp {
    my ($from, $to, $port, $text) = @_;
    return summed($from, $to, UDP, 6, pack('n n n n', 5353, $port, 8 + length $text, 0) . $text);
}

sub syn {
    my ($from, $to, $port, $text) = @_;
    return summed($from, $to, TCP, 16, pack('n n N N C C n n n', 40000, $port, 1, 0, 0x50, 2, 64240, 0, 0) . $text);
}

sub icmp { my ($type, $code, $rest) = @_; my $m = pack('C C n', $type, $code, 0) . $rest; substr $m, 2, 2, pack 'n', sum($m); return $m; }
sub icmp6 { my ($from, $to, $type, $rest) = @_; return summed($from, $to, ICMP6, 2, pack('C C n', $type, 0, 0) . $rest); }
sub six { return inet_pton(AF_INET6, shift); }

socket(my $packets, PF_PACKET, SOCK_RAW, unpack 'S', pack 'n', ETH_P_ALL) or die "packet socket: $!";
# SIOCGIFINDEX, netdevice(7).
my $request = pack 'a16 x24', $device;
ioctl $packets, 0x8933, $request or die "$device: $!";
my $index = unpack 'x16 l', $request;
my $link = pack 'S n l S C C a8', PF_PACKET, ETH_P_ALL, $index, 0, 0, 0, '';
bind $packets, $link or die "bind to $device: $!";

my $count = 0;
sub frame {
    my ($kind, $make) = @_;
    # A frame is at least 60 bytes long.
    my $frame = $make->("$mark $kind\0");
    $frame .= "\0" x (60 - length $frame) if length $frame < 60;
    send $packets, $frame, 0, $link or die "$kind: $!";
    # The other end's buffer is small.
    select undef, undef, undef, 0.002 if ++$count % 8 == 0;
}

sub frames {
    for my $to (@v4) {
        for my $from ($stranger, $gateway, '192.168.100.3', '127.0.0.1', '0.0.0.0', $to) {
            for my $mac ($own_mac, $false_mac) {
                my $body = sub { my ($protocol, $body) = @_; ether($gateway_mac, $mac, 0x0800, ip4($from, $to, $protocol, $body)) };
                my @ends = map { inet_aton($_) } $from, $to;
                for my $port (@$udp_ports) { frame('udp-false-source', sub { $body->(UDP, udp(@ends, $port, @_)) }); }
                for my $port (@$tcp_ports) { frame('tcp-false-source', sub { $body->(TCP, syn(@ends, $port, @_)) }); }
                frame('echo-false-source', sub { $body->(ICMP, icmp(8, 0, pack('n n', 1, 1) . $_[0])) });
            }
        }
        my @ends = map { inet_aton($_) } $own, $to;
        # To hardware addresses that are not the gateway's: everybody's, another VM's (it is this VM's own), nobody's.
        for my $mac ($everybody, $own_mac, $false_mac) {
            frame('past-the-gateway', sub { ether($mac, $own_mac, 0x0800, ip4($own, $to, UDP, udp(@ends, 9999, @_))) });
        }
        frame('false-hardware-source', sub { ether($gateway_mac, $false_mac, 0x0800, ip4($own, $to, UDP, udp(@ends, 9999, @_))) });
        frame('echo', sub { ether($gateway_mac, $own_mac, 0x0800, ip4($own, $to, ICMP, icmp(8, 0, pack('n n', 1, 2) . $_[0]))) });
        # Loose source route (RFC 791) by way of it.
        my $route = pack('C C C a4 C', 131, 7, 4, inet_aton($to), 0);
        frame('source-route', sub { ether($gateway_mac, $own_mac, 0x0800, ip4($own, $gateway, UDP, udp(inet_aton($own), inet_aton($gateway), 9999, @_), $route)) });
        # "There is a better way to it, by me" (RFC 792).
        frame('redirect', sub { ether($gateway_mac, $own_mac, 0x0800, ip4($gateway, $own, ICMP, icmp(5, 1, inet_aton($own) . ip4($gateway, $to, UDP, $_[0])))) });
        my $inner = sub { ip4($stranger, $to, UDP, udp(inet_aton($stranger), inet_aton($to), 9999, @_)) };
        frame('ip-in-ip', sub { ether($gateway_mac, $own_mac, 0x0800, ip4($own, $gateway, IPIP, $inner->(@_))) });
        frame('gre', sub { ether($gateway_mac, $own_mac, 0x0800, ip4($own, $gateway, GRE, pack('n n', 0, 0x0800) . $inner->(@_))) });
        for my $vlan (1, 100) {
            frame('vlan', sub { ether($gateway_mac, $own_mac, 0x8100, pack('n n', $vlan, 0x0800) . $inner->(@_)) });
        }
        # Who has it, asked as oneself and as somebody else; and: it is at mine.
        for my $sender ($own, $stranger, $gateway) {
            my $arp = sub { my ($op, $mac, $text) = @_; pack('n n C C n a6 a4 a6 a4', 1, 0x0800, 6, 4, $op, $mac, inet_aton($sender), "\0" x 6, inet_aton($to)) . $text };
            frame('arp-question', sub { ether($everybody, $own_mac, 0x0806, $arp->(1, $own_mac, @_)) });
        }
    }
    for my $claimed (@v4, $own, $gateway, $stranger) {
        for my $op (1, 2) {
            for my $to ($everybody, $gateway_mac) {
                my $arp = pack('n n C C n a6 a4 a6 a4', 1, 0x0800, 6, 4, $op, $false_mac, inet_aton($claimed), $gateway_mac, inet_aton($claimed));
                frame('arp-claim', sub { ether($to, $false_mac, 0x0806, $arp . $_[0]) });
            }
        }
    }
    for my $group ('224.0.0.251', '224.0.0.1', '239.255.255.250', '255.255.255.255', '169.254.0.23', '10.255.255.255') {
        my $last = inet_aton($group);
        my $mac = $group =~ /^2[23]/ ? "\x01\x00\x5e" . pack('C3', (unpack 'C4', $last)[1] & 127, (unpack 'C4', $last)[2, 3]) : $everybody;
        my $kind = $group =~ /^2[23]/ ? 'multicast' : 'broadcast';
        for my $from ($own, $stranger) {
            for my $port (@$udp_ports, 67, 1900, 5353) {
                frame($kind, sub { ether($mac, $own_mac, 0x0800, ip4($from, $group, UDP, udp(inet_aton($from), $last, $port, @_))) });
            }
        }
    }
    # The addresses that IPv6 makes of the hardware addresses (RFC 4291).
    my ($here, $there, $nodes, $routers) = map { six($_) } 'fe80::fc:ff:fe00:5', 'fe80::fc:ff:fe00:6', 'ff02::1', 'ff02::2';
    for my $to ($there, $nodes, $routers, map { six($_) } @v6, 'fd00::22', '::ffff:10.1.2.3') {
        my $mac = ord($to) == 0xff ? "\x33\x33" . substr($to, 12) : $gateway_mac;
        for my $from ($here, six('fd00::21'), $to) {
            for my $port (@$udp_ports) { frame('ip6-udp', sub { ether($mac, $own_mac, 0x86dd, ip6($from, $to, UDP, udp($from, $to, $port, @_))) }); }
            for my $port (@$tcp_ports) { frame('ip6-tcp', sub { ether($mac, $own_mac, 0x86dd, ip6($from, $to, TCP, syn($from, $to, $port, @_))) }); }
            frame('ip6-echo', sub { ether($mac, $own_mac, 0x86dd, ip6($from, $to, ICMP6, icmp6($from, $to, 128, pack('n n', 1, 1) . $_[0]))) });
        }
        # Who has it; it is at mine; I am the router (RFC 4861).
        my $text = sub { pack('C C', 253, 8) . substr($_[0] . "\0" x 62, 0, 62) };
        frame('nd-question', sub { ether("\x33\x33\xff\0\0\x06", $own_mac, 0x86dd, ip6($here, $to, ICMP6, icmp6($here, $to, 135, pack('N a16 C C a6', 0, $to, 1, 1, $own_mac) . $text->(@_)))) });
        frame('nd-claim', sub { ether("\x33\x33\0\0\0\x01", $false_mac, 0x86dd, ip6($there, $nodes, ICMP6, icmp6($there, $nodes, 136, pack('N a16 C C a6', 0x20000000, $to, 2, 1, $false_mac) . $text->(@_)))) });
    }
    frame('nd-router', sub { ether("\x33\x33\0\0\0\x01", $own_mac, 0x86dd, ip6($here, $nodes, ICMP6, icmp6($here, $nodes, 134, pack('C C n N N', 64, 0, 1800, 0, 0) . pack('C C C C N N N a16', 3, 4, 64, 0xc0, 3600, 3600, 0, six('fd00::')) . pack('C C', 253, 8) . substr($_[0] . "\0" x 62, 0, 62)))) });
    # What bridges and switches listen to.
    frame('lldp', sub { ether("\x01\x80\xc2\0\0\x0e", $own_mac, 0x88cc, @_) });
    frame('spanning-tree', sub { ether("\x01\x80\xc2\0\0\0", $own_mac, 3 + length $_[0], "\x42\x42\x03" . $_[0]) });
    frame('unknown-type', sub { ether($everybody, $own_mac, 0x88b5, @_) });
}

# What comes in meanwhile: nothing but the gateway may speak, never by IPv6, and nobody returns what was sent.
sub answers {
    my $end = time + $patience;
    while (time < $end) {
        my $waiting = '';
        vec($waiting, fileno $packets, 1) = 1;
        last unless select $waiting, undef, undef, $quiet;
        my $from = recv $packets, my $frame, 65536, 0;
        next if !defined $from || length $frame < 14 || (unpack 'S n l S C', $from)[4] == OUTGOING;
        my (undef, $source, $type) = unpack 'a6 a6 n', $frame;
        my $protocol = $type == 0x0800 ? unpack 'x23 C', $frame : 0;
        my $returned = index($frame, $mark) >= 0 && ($protocol == UDP || $protocol == TCP);
        next if $source eq $gateway_mac && $type != 0x86dd && !$returned;
        printf "answer frame of type %04x from %s\n", $type, unpack 'H*', $source;
    }
}

sub connections {
    my $what = shift;
    my %tried;
    for my $address (@$addresses, 'fe80::fc:ff:fe00:6') {
        my $family = $address =~ /:/ ? AF_INET6 : AF_INET;
        my $packed = inet_pton($family, $address);
        my $place = sub { $family == AF_INET ? pack_sockaddr_in($_[0], $packed) : pack_sockaddr_in6($_[0], $packed, $index) };
        for my $port (@$tcp_ports) {
            socket(my $socket, $family, SOCK_STREAM, 0) or next;
            fcntl $socket, F_SETFL, O_NONBLOCK;
            next unless connect($socket, $place->($port)) || $! == EINPROGRESS;
            $tried{fileno $socket} = [$socket, "tcp $address $port", "GET / HTTP/1.1\r\nHost: $address\r\nX: $mark tcp\r\n\r\n"];
        }
        for my $port (@$udp_ports) {
            socket(my $socket, $family, SOCK_DGRAM, 0) or next;
            fcntl $socket, F_SETFL, O_NONBLOCK;
            # `connect`: an answer counts from wherever it was asked for.
            connect $socket, $place->($port) or next;
            send $socket, "$mark udp", 0;
            $tried{fileno $socket} = [$socket, "udp $address $port", undef];
        }
    }
    for my $group ('224.0.0.251', '255.255.255.255', '169.254.0.23') {
        socket(my $socket, AF_INET, SOCK_DGRAM, 0) or next;
        setsockopt $socket, SOL_SOCKET, SO_BROADCAST, 1;
        fcntl $socket, F_SETFL, O_NONBLOCK;
        send $socket, "$mark udp", 0, pack_sockaddr_in($_, inet_aton($group)) for @$udp_ports;
        $tried{fileno $socket} = [$socket, "udp $group", undef];
    }
    my $end = time + $quiet * 2;
    while (time < $end && %tried) {
        my ($readable, $writable) = ('', '');
        for (keys %tried) {
            vec($readable, $_, 1) = 1;
            vec($writable, $_, 1) = 1 if defined $tried{$_}[2];
        }
        last if select($readable, $writable, undef, $quiet) <= 0;
        for my $number (keys %tried) {
            my ($socket, $name, $text) = @{$tried{$number}};
            if (defined $text && vec $writable, $number, 1) {
                $tried{$number}[2] = undef;
                delete $tried{$number} unless defined syswrite $socket, $text;
            } elsif (vec $readable, $number, 1) {
                my $count = sysread $socket, my $answer, 512;
                print "answer $what $name\n" if $count;
                delete $tried{$number};
            }
        }
    }
}

# As root of the network: whatever it takes. What this kernel does not have cannot be abused.
sub ip { system "ip $_[0] >/dev/null 2>&1"; return; }

$SIG{PIPE} = 'IGNORE';
$| = 1;
my %kinds;
{
    no warnings 'redefine';
    my $plain = \&frame;
    *frame = sub { $kinds{$_[0]} = 1; $plain->(@_) };
}
frames();
print "sent $_\n" for sort keys %kinds;
answers();
connections('as it is');
ip("address add $stranger/32 dev $device");
ip("route replace default via $gateway dev $device src $stranger");
for my $which ('all', $device) {
    if (open my $file, '>', "/proc/sys/net/ipv6/conf/$which/disable_ipv6") { print $file 0; close $file; }
}
ip("-6 address add fd00::21/64 dev $device nodad");
ip("-6 route add default via fd00::22 dev $device onlink");
connections('with another address');
ip("link set dev $device address 02:fc:00:00:00:99 promisc on");
ip("neighbour replace $gateway lladdr 02:fc:00:00:00:06 dev $device nud permanent");
connections('with another hardware address');
answers();
ip("link set dev $device address 02:fc:00:00:00:05 promisc off");
ip("address delete $stranger/32 dev $device");
ip("neighbour replace $gateway lladdr 02:fc:00:00:00:06 dev $device nud permanent");
ip("route replace default via $gateway dev $device");
print "done\n";
