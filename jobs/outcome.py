from contextlib import contextmanager
import time
class RunLog:
    def __init__(self, *a): self.t=time.time(); self.tok=0
    @contextmanager
    def progress(self, n, session):
        def show(c):
            self.tok+=c.tokens; print(c.rows, c.tokens, c.padding_tokens, {k: round(v,2) for k,v in c.seconds.items()}, round(self.tok/(time.time()-self.t)))
        yield show
    def nothing_to_do(self): print("nothing to do")
    def finish(self, s): print("snapshot", s.number, len(s.records), time.time()-self.t)
def check_gates(config, records): return 0
def store_config(*a): pass
