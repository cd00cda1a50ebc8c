"""Who may visit: networks compiled once, asked per visitor."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from attrs import frozen

from layer8.proxy.wire import Code, Denied

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def network(text: str) -> Network:
    """Read a CIDR or an address; one with host bits set is the network it lies in. Raises `ValueError`."""
    if "%" in text:
        raise ValueError(f"{text!r}: a network has no interface")
    found = ip_network(text, strict=False)
    if isinstance(found, IPv6Network) and found.prefixlen >= 96 and found.network_address.ipv4_mapped:
        return IPv4Network((found.network_address.ipv4_mapped, found.prefixlen - 96))
    return found


def address(text: str) -> Address:
    """Read an address; IPv4 inside IPv6 is IPv4, an interface name is dropped. Raises `ValueError`."""
    found = ip_address(text.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


@frozen
class Gate:
    """A compiled pair of rule lists: `deny` beats `allow`, and an empty `allow` lets everybody in."""

    allow: tuple[Network, ...]
    deny: tuple[Network, ...]

    def admits(self, visitor: str) -> bool:
        """Say whether an address may come in; one that cannot be read may not."""
        try:
            who = address(visitor)
        except ValueError:
            return False
        if any(who in rule for rule in self.deny):
            return False
        return not self.allow or any(who in rule for rule in self.allow)


def gate(allow: tuple[str, ...], deny: tuple[str, ...], most: int) -> Gate | None:
    """Compile rules, None if there are none; raises `Denied` for more than `most` or one that cannot be read."""
    if not allow and not deny:
        return None
    if len(allow) + len(deny) > most:
        raise Denied(Code.QUOTA, f"a host has at most {most} rules", limit="POLICY_RULES")
    try:
        return Gate(tuple(map(network, allow)), tuple(map(network, deny)))
    except ValueError as error:
        raise Denied(Code.FORBIDDEN_BY_POLICY, f"not a network: {error}") from error
