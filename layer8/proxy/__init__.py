"""The socket proxy: publish a local port through a public server that sniffs Host and SNI.

The daemons are made of two services that other programs can use as well::

    from layer8.config.proxy import AgentConfig, ProxyConfig
    from layer8.proxy import Agent, Gateway

    async def main(reactor):
        gateway = Gateway(reactor, ProxyConfig(http=("tcp:0:interface=127.0.0.1",), https=(), access_log=""))
        gateway.startService()
        secret = await gateway.register("app.example.org")

        agent = Agent(reactor, AgentConfig(servers=(gateway.url,)))
        agent.startService()
        app = agent.expose("app.example.org", "127.0.0.1:8000", secret)
        await app.ready()
        print(app.url, app.state)  # http://app.example.org:41873 serving

        await app.close()
        await agent.stopService()
        await gateway.stopService()

Usually the two run on different machines; `layer8.testing.proxy_pair` is both, for the tests of programs on top.
"""

from typing import TYPE_CHECKING

from layer8.core.lazy import lazily

if TYPE_CHECKING:
    from layer8.proxy.agent import Agent
    from layer8.proxy.exposed import Exposed
    from layer8.proxy.gateway import Gateway

__all__ = ["Agent", "Exposed", "Gateway"]
__getattr__ = lazily(__name__, Agent="agent", Exposed="exposed", Gateway="gateway")
