"""As much of Ray as a sweep uses, in this process: actors that work, get lost, or see other disks.

Every call is done when it is made; `wait` gives the answers back in order.
"""

import itertools
from types import SimpleNamespace


class RayActorError(Exception):
    """As Ray's: the actor is gone."""


class FakeRay:
    """Stands for the module.

    Args:
        resources: of the cluster.
        lose: actors by number that are lost with their first run.
        sees: whether actors see the driver's files.
        running: whether there is a cluster to connect to.
    """

    __version__ = "2.60.0"
    exceptions = SimpleNamespace(RayActorError=RayActorError)

    def __init__(self, resources=None, *, lose=(), sees=True, running=True):
        self.resources = resources or {"CPU": 2.0}
        self.lose, self.sees_files, self.running = set(lose), sees, running
        self.actors, self.options, self.inits, self.is_up = [], [], [], False
        self._calls = itertools.count()

    def is_initialized(self):
        return False

    def init(self, **options):
        self.inits.append(options)
        if options["address"] != "local" and not self.running:
            raise ConnectionError("Could not find any running Ray instance.")
        self.is_up = True

    def shutdown(self):
        self.is_up = False

    def cluster_resources(self):
        return self.resources

    def remote(self, cls):
        return SimpleNamespace(options=lambda **needs: self._options(cls, needs))

    def _options(self, cls, needs):
        self.options.append(needs)
        return SimpleNamespace(remote=lambda *given: self._actor(cls, given))

    def _actor(self, cls, given):
        actor = Actor(self, cls(*given), len(self.actors))
        self.actors.append(actor)
        return actor

    def wait(self, calls, num_returns, timeout):
        return calls[:1], calls[1:]

    def get(self, call):
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def kill(self, actor):
        actor.is_killed = True


class Actor:
    def __init__(self, ray, slot, number):
        self._ray, self._slot, self._number = ray, slot, number
        self.is_killed = False

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self._call(name, given))

    def _call(self, name, given):
        if name == "news" and self._number in self._ray.lose:
            self._slot.stop()  # as when its machine is gone
            return _Call(RayActorError("The actor died."))
        if name == "sees" and not self._ray.sees_files:
            return _Call(False)
        return _Call(getattr(self._slot, name)(*given))


class _Call(SimpleNamespace):
    def __init__(self, answer):
        super().__init__(answer=answer)

    __hash__ = object.__hash__
