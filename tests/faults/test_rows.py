"""What must survive, row by row, and the test of each: rented machines, from the engine to the cloud."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

RENTED = "tests/faults/test_rented.py"
SIMULATED = "tests/e2e/test_simulated.py"
ENGINE = "tests/infra/test_engine.py"
PROGRAMS = "tests/infra/test_programs.py"
LIVE = "tests/infra/test_live_offers.py"

# The fault, and the tests that see what becomes of it.
ROWS: dict[int, tuple[str, dict[str, list[str]]]] = {
    1: ("the engine is killed while it creates", {
        RENTED: ["test_row_01_an_engine_killed_while_it_creates_leaves_nothing_and_the_next_up_works"],
        ENGINE: ["test_a_killed_engine_leaves_a_pending_creation_that_is_adopted_and_destroyed"],
    }),
    2: ("down, while a creation is pending", {
        RENTED: ["test_row_02_down_with_a_pending_creation_asks_the_cloud_before_it_says_that_nothing_is_left"],
    }),
    3: ("Ctrl-C once in up", {RENTED: ["test_row_03_one_ctrl_c_in_up_leaves_an_empty_cloud_and_no_lock"]}),
    4: ("Ctrl-C three times", {
        RENTED: ["test_row_04_three_ctrl_cs_in_up_leave_an_empty_cloud_and_say_what_is_rolled_back"],
        ENGINE: ["test_three_signals_forward_one"],
    }),
    5: ("the orchestrator is killed", {
        RENTED: ["test_row_05_an_orchestrator_killed_while_it_creates_is_gone_on_with_by_the_next_up"],
        SIMULATED: ["test_a_client_killed_while_the_machine_is_made_is_cleaned_up_by_down"],
    }),
    6: ("Ctrl-C in down", {RENTED: ["test_row_06_ctrl_c_in_down_does_not_keep_it_from_finishing"]}),
    7: ("the reply to a creation is lost", {
        RENTED: [
            "test_row_07_a_plugin_that_dies_with_its_machine_made_leaves_nothing",
            "test_row_07_what_may_have_been_made_and_no_list_shows_is_named",
        ],
        SIMULATED: ["test_whatever_way_a_creation_fails_nothing_is_left"],
    }),
    8: ("the wait timed out, the id is known", {SIMULATED: ["test_whatever_way_a_creation_fails_nothing_is_left"]}),
    9: ("sold out after the network exists", {
        RENTED: ["test_row_09_what_was_made_is_gone_before_the_next_offer_is_tried"],
        SIMULATED: ["test_when_everything_is_sold_out_the_error_says_what_was_tried"],
    }),
    10: ("the cloud refuses to delete", {
        SIMULATED: ["test_a_cloud_that_refuses_to_delete_is_exit_code_4_and_named"],
    }),
    11: ("the machine is gone already", {RENTED: ["test_row_11_a_machine_that_is_gone_already_is_a_success"]}),
    12: ("the machine is not listed yet", {RENTED: ["test_row_12_not_listed_yet_is_not_gone"]}),
    13: ("two up on one name", {RENTED: ["test_row_13_of_three_ups_on_one_name_one_makes_a_machine"]}),
    14: ("a stale lock", {
        RENTED: ["test_row_14_a_lock_of_a_dead_process_here_is_cleared_and_one_of_elsewhere_is_not"],
        ENGINE: [
            "test_the_lock_of_a_living_process_is_kept", "test_the_lock_of_another_host_is_kept",
            "test_a_lock_is_stale_where_its_pid_is_now_another_process", "test_a_lock_that_is_cut_off_is_kept",
        ],
    }),
    15: ("up while down runs, and the other way round", {RENTED: ["test_row_15_up_and_down_never_run_at_once"]}),
    16: ("the state is cut off, or empty", {
        RENTED: [
            "test_row_16_a_cut_off_state_is_4_with_its_backup_and_the_cloud_is_swept",
            "test_row_16_an_empty_state_without_a_backup_is_4_until_the_user_gives_his_word",
        ],
    }),
    17: ("the state is missing", {RENTED: ["test_row_17_a_missing_state_is_4_and_none_is_made"]}),
    18: ("a wrong passphrase", {
        RENTED: ["test_row_18_a_wrong_passphrase_is_2_before_anything_is_asked_and_down_goes_by_tags"],
    }),
    19: ("the disk of the state is full", {
        RENTED: [
            "test_row_19_too_little_room_for_the_state_is_said_before_anything_is_made",
            "test_row_19_a_disk_that_fills_up_while_a_machine_is_made_leaves_nothing",
        ],
    }),
    20: ("a deletion is interrupted", {RENTED: ["test_row_20_an_interrupted_deletion_is_retried"]}),
    21: ("the key expires", {
        RENTED: [
            "test_row_21_a_key_that_has_expired_is_2_before_anything_is_made",
            "test_row_21_a_key_that_expires_half_way_is_4_and_names_what_is_there",
        ],
    }),
    22: ("this computer is lost or asleep", {
        RENTED: ["test_row_22_the_cloud_itself_ends_the_machine"],
        PROGRAMS: ["test_the_cloud_is_told_of_every_machines_end"],
    }),
    23: ("this computer's clock is off", {
        LIVE: ["test_a_clock_that_is_off_is_refused_before_anything_is_asked_with_the_key"],
    }),
}  # fmt: skip


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_its_tests(row: int) -> None:
    for file, names in ROWS[row][1].items():
        assert names and set(names) <= functions(REPOSITORY / file), file


def test_the_rows_are_all_there_and_no_test_is_of_a_row_that_does_not_name_it() -> None:
    assert list(ROWS) == list(range(1, len(ROWS) + 1))
    named = {name for _, files in ROWS.values() for name in files.get(RENTED, [])}
    assert {name for name in functions(REPOSITORY / RENTED) if name.startswith("test_row_")} == named
    for row, (_, files) in ROWS.items():
        assert all(name.startswith(f"test_row_{row:02}_") for name in files.get(RENTED, []))
