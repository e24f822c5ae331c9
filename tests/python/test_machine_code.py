"""The kernels' machine code: every way through a kernel waits for the kernel ahead of it before it touches memory.

The host launches all kernels so that they may begin while the one ahead still runs. A load ahead of the wait, which
the compiler may make of one that it takes for a constant's, would read what that one still writes."""

from __future__ import annotations

import ctypes as c
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import deepwell

ROOT = Path(__file__).resolve().parents[2]
WAIT = "ACQBULK"  # griddepcontrol.wait
# PREEXIT: griddepcontrol.launch_dependents. A kernel that ended early would let the next one start.
ACCESSES = frozenset(
    (
        *("LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP", "UBLKRED"),
        *("UTMALDG", "UTMASTG", "UTMAREDG", "PREEXIT", "EXIT"),
    )
)
PLAIN_JUMPS = frozenset({"BRA", "BRA.DIV", "BRA.U.ANY", "CALL.REL.NOINC", "WARPSYNC.COLLECTIVE"})
UNCONDITIONAL = frozenset({"BRA", "EXIT", "RET.REL.NODEC"})
UNKNOWN_JUMPS = re.compile(r"(BRX|BRXU|JMP|JMX|JMXU|BREAK|BRA|CALL|RET|WARPSYNC\.COLL)\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    code: str
    operands: str

    @property
    def targets(self) -> list[int]:
        return [int(number, 16) for number in re.findall(r"0x([0-9a-f]+)\b", self.operands)]


@dataclass(frozen=True)
class Way:
    """Where a way through the code has got to: the next instruction, whether it has waited, and where the barriers of
    divergent code, set by BSSY, let it go on."""

    at: int
    waited: bool
    barriers: tuple[tuple[str, int], ...] = ()


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Of what `cuobjdump -sass` prints."""
    found = {}
    for part in listing.split("Function : ")[1:]:
        lines = re.findall(
            r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", part, re.MULTILINE
        )
        found[part.split("\n", 1)[0].strip()] = [
            Instruction(int(address, 16), bool(predicate), code, operands.strip())
            for address, predicate, code, operands in lines
        ]
    return found


def steps(i: Instruction, way: Way) -> list[Way]:
    """Where a way goes on after an instruction."""
    onward = replace(way, at=i.address + 16, waited=way.waited or (i.code == WAIT and not i.predicated))
    if i.code.startswith("BSSY"):
        name = i.operands.split(",")[0]
        barriers = dict(way.barriers) | {name: i.targets[0]}
        return [replace(onward, barriers=tuple(sorted(barriers.items())))]
    if i.code.startswith("BSYNC"):
        barriers = dict(way.barriers)
        target = barriers.pop(i.operands, onward.at)
        over = replace(onward, at=target, barriers=tuple(sorted(barriers.items())))
        return [over, onward] if i.predicated else [over]
    if i.code in PLAIN_JUMPS:
        jumps = [replace(onward, at=target) for target in i.targets]
        if not jumps:
            raise ValueError(f"{i.code} {i.operands} at {i.address:#x} names no target")
        return jumps if i.code in UNCONDITIONAL and not i.predicated else [*jumps, onward]
    if i.code in UNCONDITIONAL:
        return [onward] if i.predicated else []
    if UNKNOWN_JUMPS.match(i.code):
        raise ValueError(f"{i.code} {i.operands} at {i.address:#x}: not known where it goes")
    return [onward]


def too_early(code: list[Instruction]) -> list[Instruction]:
    """What some way through the code reaches before it has waited."""
    at = {i.address: i for i in code}
    todo, seen, found = [Way(code[0].address, False)], set(), set()
    while todo:
        way = todo.pop()
        if way in seen or replace(way, waited=False) in seen:
            continue
        seen.add(way)
        if way.at not in at:
            raise ValueError(f"a way leads to {way.at:#x}, where there is no instruction")
        i = at[way.at]
        if not way.waited and i.code.split(".")[0] in ACCESSES:
            found.add(i)
        todo += steps(i, way)
    return sorted(found, key=lambda i: i.address)


# ---- the analysis itself ----


def listing(*lines: str) -> list[Instruction]:
    text = "Function : k\n" + "".join(
        f"        /*{16 * n:04x}*/  {line} ;  /* 0x0 */\n" for n, line in enumerate(lines)
    )
    return functions(text)["k"]


WAYS = {
    "none waits": (["MOV R1, c[0x0][0x28]", "LDG.E R0, [R2.64]", "EXIT"], ["LDG.E", "EXIT"]),
    "a load after the wait": (["ACQBULK", "LDG.E R0, [R2.64]", "EXIT"], []),
    "a wait in one branch": (["@P0 BRA 0x20", "ACQBULK", "STG.E [R2.64], R0", "EXIT"], ["STG.E", "EXIT"]),
    "a wait in both": (["@P0 BRA 0x30", "ACQBULK", "BRA 0x40", "ACQBULK", "UTMALDG.2D [UR4], [UR8]", "EXIT"], []),
    "listed first, run last": (["BRA 0x30", "ACQBULK", "EXIT", "LDG.E R0, [R2.64]", "BRA 0x10"], ["LDG.E"]),
    "listed last, run first": (["BRA 0x30", "LDG.E R0, [R2.64]", "EXIT", "ACQBULK", "BRA 0x10"], []),
    "a loop": (["MOV R0, 0x1", "@P0 BRA 0x0", "ACQBULK", "RED.E.ADD [R2.64], R0", "@!P0 BRA 0x30", "EXIT"], []),
    "a wait within a loop": (["@P0 BRA 0x30", "ACQBULK", "BRA 0x0", "LD.E R0, [R2.64]", "EXIT"], ["LD.E", "EXIT"]),
    "an early end": (["@P0 EXIT", "ACQBULK", "EXIT"], ["EXIT"]),
    "a wait of some": (["@P0 ACQBULK", "PREEXIT", "ACQBULK", "EXIT"], ["PREEXIT"]),
    "diverged": (
        ["BSSY B0, 0x50", "@P0 BRA 0x40", "ACQBULK", "BSYNC B0", "BSYNC B0", "PREEXIT", "EXIT"],
        ["PREEXIT", "EXIT"],
    ),
    "a jump of a barrier": (["BSSY B0, 0x30", "BSYNC B0", "ACQBULK", "EXIT"], ["EXIT"]),
    "nothing of the grid's": (["LDS R0, [R1]", "STS [R1], R0", "LDC R0, c[0x0][0x210]", "ACQBULK", "EXIT"], []),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_through_code(name: str) -> None:
    lines, expected = WAYS[name]
    assert [i.code for i in too_early(listing(*lines))] == expected


@pytest.mark.parametrize("line", ["BRX R2 -0x10", "JMP 0x0", "BREAK B0", "CALL.ABS.NOINC R2", "BRA.CONV UR4"])
def test_unknown_jumps_are_no_silence(line: str) -> None:
    with pytest.raises(ValueError, match=line.split()[0].replace(".", r"\.")):
        too_early(listing(line, "ACQBULK", "EXIT"))


def test_ways_out_of_the_listing_are_no_silence() -> None:
    with pytest.raises(ValueError, match="0x990"):
        too_early(listing("ACQBULK", "@P0 BRA 0x990", "EXIT"))


# ---- the library's kernels ----


def images() -> list[tuple[str, bytes]]:
    """Those with machine code for Hopper; Blackwell's comes from the same source."""
    library = c.CDLL(str(next(Path(deepwell.__file__).parent.glob("libdeepwell.so*"))))
    library.dw_cuda_image_count.restype = c.c_size_t
    library.dw_cuda_image_get.argtypes = (c.c_size_t, *4 * (c.c_void_p,))
    found = []
    for index in range(library.dw_cuda_image_count()):
        name, architectures, address, size = c.c_char_p(), c.c_char_p(), c.c_void_p(), c.c_size_t()
        results = map(c.byref, (name, architectures, address, size))
        assert library.dw_cuda_image_get(index, *results) == 0
        assert name.value is not None
        assert architectures.value is not None
        assert address.value is not None
        if b"sm_90a" in architectures.value:
            found.append((name.value.decode(), c.string_at(address.value, size.value)))
    return found


def cuobjdump() -> str | None:
    """Beside the compiler, where cmake/DeepwellCuda.cmake looks for it."""
    for prefix in (Path(sys.prefix), ROOT / ".venv"):
        for folder in ("cuda/nvidia/cu13/bin", "lib/python3*/site-packages/nvidia/cu13/bin"):
            for tool in prefix.glob(f"{folder}/cuobjdump"):
                return str(tool)
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Instruction]]]:
    """The instructions of each image's kernels."""
    tool, all_images, folder = cuobjdump(), images(), tmp_path_factory.mktemp("images")
    if not all_images:
        pytest.skip("built without device code")
    if tool is None:
        pytest.skip("no cuobjdump on this machine")

    def kernels(image: tuple[str, bytes]) -> dict[str, list[Instruction]]:
        file = folder / (image[0].replace("/", "-") + ".fatbin")
        file.write_bytes(image[1])
        done = subprocess.run(
            [tool, "-sass", "-arch", "sm_90a", str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{image[0]}: {done.stderr}"
        return functions(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip((name for name, _ in all_images), pool.map(kernels, all_images), strict=True))
    for image, kernel_codes in found.items():
        assert kernel_codes, f"{image} holds no kernel"
        for kernel, code in kernel_codes.items():
            assert len(code) > 10, f"the listing of {kernel} was not understood"
    return found


def test_every_way_through_a_kernel_waits(listed: dict[str, dict[str, list[Instruction]]]) -> None:
    early = []
    for found in listed.values():
        for kernel, code in found.items():
            deaf = [replace(i, code="NOP") if i.code == WAIT else i for i in code]
            assert too_early(deaf), f"nothing of {kernel} would be found without its waits"
            early += [f"{kernel} at {i.address:#x}: {i.code} {i.operands}" for i in too_early(code)]
    assert not early, "not waited for the kernel ahead:\n" + "\n".join(early)


def test_products_follow_each_other(listed: dict[str, dict[str, list[Instruction]]]) -> None:
    """The compiler puts a wait behind every single product where it cannot tell that nothing else touches their sums,
    which it says in a note that the build does not show. A stage has four products for one or two waits."""
    seen, serialized = 0, []
    for image, found in listed.items():
        for kernel, code in found.items():
            products = sum(i.code.startswith(("HGMMA", "QGMMA")) for i in code)
            waits = sum(i.code.startswith("WARPGROUP.DEPBAR") for i in code)
            assert (products > 0) == image.startswith("sm90/gemm_"), kernel
            seen += products > 0
            if products and waits > products / 2 + 1:
                serialized.append(f"{kernel}: {products} products, {waits} waits")
    assert seen > 40
    assert not serialized, "products wait for each other:\n" + "\n".join(serialized)
