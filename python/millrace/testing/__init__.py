"""
Tools for testing programs that use Millrace, public so that users can test theirs.

`Heartbeat` measures how late an event loop runs, `Victim` is a child process made to be killed,
`AckWriter` and `read_acks` carry acknowledgements out of it, and `temporary_log` opens a log in
a directory that goes away.
"""

from millrace.testing.acks import Ack as Ack
from millrace.testing.acks import AckWriter as AckWriter
from millrace.testing.acks import read_acks as read_acks
from millrace.testing.heartbeat import Heartbeat as Heartbeat
from millrace.testing.heartbeat import percentile as percentile
from millrace.testing.stores import temporary_log as temporary_log
from millrace.testing.victim import Victim as Victim
