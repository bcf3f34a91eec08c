"""Sums up at the end of a test run how many seconds each member of the family took.

A test is of a member if it has the mark `member`. Where it waits for something that is done once for all members, it
takes that time away, and adds the member's own part of it: `record_share`.
"""

import collections

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "member(name): a test of this member of the family")


def pytest_collection_modifyitems(items):
    for item in items:
        if mark := item.get_closest_marker("member"):
            item.user_properties.append(("member", mark.kwargs["name"]))


def record_share(item, waited, own):
    """Note of a test that so many seconds of it were of all members, and so many elsewhere of its own."""
    item.user_properties.append(("share", own - waited))


def pytest_terminal_summary(terminalreporter):
    seconds, tests = collections.Counter(), collections.Counter()
    reports = [one for several in terminalreporter.stats.values() for one in several]
    for report in reports:
        if not isinstance(report, pytest.TestReport):
            continue  # of the collection, or a test that was left out
        told = [tuple(each) for each in report.user_properties]
        if name := dict(told).get("member"):
            seconds[name] += report.duration
            if report.when == "call":
                tests[name] += 1
                seconds[name] += sum(value for key, value in told if key == "share")
    if seconds:
        terminalreporter.section("seconds of each member of the family")
        for name, total in seconds.most_common():
            terminalreporter.write_line(f"{total:7.1f} s  {name}, {tests[name]} tests")
