"""Reports in the form that CI systems show as tests: JUnit's XML, as Jenkins, GitLab and GitHub's actions read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from oxherd.ops.verify import Report

_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report, suite: str) -> str:
    """The report as one suite. A warning passes, and says what was found in its output.

    Parameters:
        report: the checks.
        suite: what was verified.
    """
    checks = report.checks
    root = ET.Element(
        "testsuite", name=_clean(suite), tests=str(len(checks)), failures=str(len(report.failed)), errors="0",
        skipped=str(sum(check.outcome == "skipped" for check in checks)),
        time=f"{sum(check.seconds for check in checks):.3f}",
    )  # fmt: skip
    for check in checks:
        case = ET.SubElement(root, "testcase", classname="oxherd.verify", name=check.name, time=f"{check.seconds:.3f}")
        words = _clean(f"{check.found}\n{check.fix}".strip())
        match check.outcome:
            case "failed":
                ET.SubElement(case, "failure", message=_clean(check.found)).text = words
            case "skipped":
                ET.SubElement(case, "skipped", message=_clean(check.found))
            case _:
                ET.SubElement(case, "system-out").text = words
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)
