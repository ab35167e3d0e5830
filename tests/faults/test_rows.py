"""What must survive, row by row, and the test of each: from the engine and the cloud to the job and its results."""

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
NAMESPACES = "tests/faults/test_namespaces.py"
RUNNING = "tests/faults/test_running.py"
OWN = (RENTED, NAMESPACES, RUNNING)  # the files of tests that are named after their rows
HOUSE = "tests/test_house.py"
BAD_INPUT = "tests/e2e/test_bad_input.py"
RECOVER = "tests/e2e/test_recover.py"
STORY = "tests/e2e/test_story.py"
BOOTSTRAP = "tests/orchestrator/test_bootstrap.py"
CONFIG = "tests/orchestrator/test_config.py"
REPORT = "tests/orchestrator/test_report.py"
RESUME = "tests/orchestrator/test_resume_transfer.py"
SSH = "tests/orchestrator/test_ssh.py"
SUPERVISOR = "tests/orchestrator/test_supervisor.py"
SYNC = "tests/orchestrator/test_sync.py"
SYSTEMD = "tests/faults/test_systemd.py"
WATCH = "tests/orchestrator/test_watch.py"
SERVER = "tests/infra/test_sshserver.py"
CHECKPOINTS = "tests/trainer/test_trainer_resume.py"
TRAINING = "tests/trainer/test_trainer_train.py"

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
            "test_row_19_a_disk_on_which_nothing_can_be_written_keeps_no_machine",
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
    24: ("a partition of minutes", {
        NAMESPACES: ["test_row_24_a_partition_is_not_noticed_by_the_job_and_its_log_goes_on_at_its_byte"],
    }),
    25: ("a line that is half open", {
        NAMESPACES: ["test_row_25_a_line_that_is_dead_without_a_word_is_seen_within_30_s"],
    }),
    26: ("a host that is frozen", {
        NAMESPACES: ["test_row_26_a_frozen_host_is_seen_by_its_silence_and_a_command_ends_with_7"],
        SSH: [
            "test_a_frozen_agent_is_seen_within_its_deadline",
            "test_a_frozen_server_is_seen_when_a_channel_is_asked_for",
        ],
    }),
    27: ("another host key", {
        BAD_INPUT: ["test_another_host_key_is_refused"],
        SSH: ["test_another_host_key_is_refused_before_we_say_who_we_are"],
    }),
    28: ("an sshd that comes late, or never", {
        RUNNING: [
            "test_row_28_an_sshd_that_comes_late_is_waited_for_with_the_reason",
            "test_row_28_an_sshd_that_never_comes_is_an_error_with_its_reason_and_the_machine_is_gone",
        ],
        SSH: ["test_waiting_says_each_new_reason_once_and_ends"],
    }),
    29: ("the reply to a submission is lost", {
        RUNNING: ["test_row_29_a_job_whose_submission_was_never_answered_is_one_job"],
        SUPERVISOR: ["test_submitted_twice_is_one_job_and_another_is_refused"],
    }),
    30: ("the SSH session drops", {
        RUNNING: ["test_row_30_a_job_outlives_its_connections_and_status_and_the_log_go_on"],
        STORY: ["test_a_killed_client_loses_nothing"],
    }),
    31: ("the job is killed by a signal", {
        RUNNING: ["test_row_31_a_job_killed_by_a_signal_is_said_by_the_machines_own_record"],
        SUPERVISOR: ["test_jobs_end_as_they_did_and_in_their_order"],
    }),
    32: ("out of memory", {RUNNING: ["test_row_32_a_job_that_ran_out_of_memory_says_oom"]}),
    33: ("the loss is no number", {
        RUNNING: ["test_row_33_a_job_that_diverged_says_so_and_its_last_good_checkpoint_is_at_home"],
        TRAINING: [
            "test_a_diverging_run_says_so_and_exits_3",
            "test_the_step_is_told_exactly_and_the_last_good_checkpoint_kept",
        ],
    }),
    34: ("no GPU, or a broken driver", {
        RUNNING: ["test_row_34_a_gpu_that_torch_does_not_see_is_10_and_never_the_cpu"],
        BOOTSTRAP: [
            "test_a_driver_that_does_not_work_is_an_error_only_where_a_gpu_was_asked_for",
            "test_a_gpu_that_is_missing_is_never_silently_the_cpu",
        ],
        TRAINING: ["test_asking_for_a_gpu_where_there_is_none_is_an_error_never_the_cpu"],
    }),
    35: ("the machine is rebooted", {
        RECOVER: ["test_after_a_reboot_the_job_goes_on_in_its_own_folder"],
        SUPERVISOR: ["test_after_a_reboot_a_job_is_lost_and_nobody_elses_process_is_touched"],
        SYSTEMD: [
            "test_a_job_outlives_its_session_and_goes_on_from_its_last_checkpoint_after_each_reboot",
            "test_where_the_power_fails_a_job_goes_on_from_the_checkpoint_before_and_one_that_is_over_stays_so",
            "test_at_its_expiry_a_machine_powers_itself_off_and_a_job_has_its_time_for_a_checkpoint",
        ],
    }),
    36: ("a spot machine is taken back", {
        RECOVER: [
            "test_a_spot_machines_notice_ends_the_job_with_a_checkpoint_and_it_goes_on_elsewhere",
            "test_training_on_three_machines_goes_on_to_the_same_weights_when_two_of_them_are_taken_away",
        ],
        WATCH: ["test_a_notice_gives_the_job_time_for_a_checkpoint_and_is_the_reason"],
    }),
    37: ("a checkpoint that is half written", {
        RUNNING: ["test_row_37_a_checkpoint_that_is_half_written_never_comes_home_under_its_name"],
        CHECKPOINTS: [
            "test_killed_at_random_points_it_ends_with_the_same_bits",
            "test_a_failed_write_leaves_the_checkpoint_before_it",
        ],
    }),
    38: ("a transfer that is damaged, or cut", {
        RUNNING: [
            "test_row_38_outputs_that_arrive_otherwise_than_they_are_is_8_and_pull_brings_them_once_they_are_right",
            "test_row_38_a_line_that_is_cut_while_results_come_home_is_8_and_pull_goes_on_where_it_was_cut",
        ],
        RESUME: ["test_a_push_that_was_killed_goes_on", "test_a_pull_that_was_killed_goes_on"],
        SYNC: ["test_a_pulled_file_is_replaced_whole"],
    }),
    39: ("the disk at home is full", {
        BAD_INPUT: ["test_a_full_disk_at_home_keeps_the_machine"],
        SYNC: ["test_a_full_disk_at_home_is_said_and_the_old_files_stay"],
    }),
    40: ("the disk of the machine is full", {
        SUPERVISOR: [
            "test_a_job_that_fills_the_disk_still_says_how_it_ended",
            "test_a_disk_that_is_full_before_the_job_starts_is_said",
            "test_a_push_to_a_full_disk_is_said_at_once_and_leaves_nothing",
        ],
    }),
    41: ("logs of gigabytes", {
        RUNNING: ["test_row_41_a_log_of_150_mb_leaves_the_clients_memory_flat"],
        WATCH: ["test_a_log_beyond_its_limit_keeps_its_beginning_and_its_end_at_their_offsets"],
    }),
    42: ("bars without line ends, a line of 100 MB", {
        RUNNING: ["test_row_42_lines_without_end_leave_the_clients_memory_flat"],
        REPORT: ["test_a_line_without_end_takes_no_memory"],
    }),
    43: ("8 MB of output that nobody has read", {
        SSH: [
            "test_eight_megabytes_on_both_streams_are_drained",
            "test_a_command_that_hangs_or_loses_its_line_is_unreachable",
        ],
        SERVER: ["test_both_outputs_can_be_large"],
    }),
    44: ("a child that holds the output open", {
        SUPERVISOR: [
            "test_a_child_that_keeps_the_output_open_holds_up_nobody",
            "test_a_job_has_no_input_and_a_session_of_its_own",
        ],
        SERVER: ["test_a_child_that_holds_the_output_keeps_the_channel_but_not_the_status"],
    }),
    45: ("escapes in a log", {
        RUNNING: ["test_row_45_a_terminal_is_not_steered_and_the_file_has_the_bytes_as_they_were"],
        REPORT: ["test_nothing_that_steers_a_terminal_is_left_however_it_comes_in_pieces"],
    }),
    46: ("a path that leads out of the results", {
        SYNC: [
            "test_a_path_that_leads_out_is_refused",
            "test_whatever_path_a_machine_names_it_is_refused_or_stays_inside",
        ],
    }),
    47: ("a link in what is pulled, or in its way", {
        SYNC: ["test_what_is_in_the_way_at_home_is_not_written_through"],
        SUPERVISOR: ["test_links_in_outputs_are_never_followed"],
        HOUSE: ["test_nothing_from_a_machine_is_unpickled_or_unpacked_at_home"],
    }),
    48: ("a device or a pipe in what is pulled", {SUPERVISOR: ["test_links_in_outputs_are_never_followed"]}),
    49: ("names with line ends, of any language, alike but for their case", {
        SYNC: [
            "test_a_pull_brings_each_file_once",
            "test_what_a_machine_names_is_shown_without_its_escapes",
        ],
        SUPERVISOR: ["test_names_of_any_kind_come_and_go"],
    }),
    50: ("too many files, a bomb", {SYNC: ["test_a_machine_that_lies_writes_nothing_wrong"]}),
    51: ("a malicious checkpoint", {
        HOUSE: ["test_nothing_from_a_machine_is_unpickled_or_unpacked_at_home"],
        CHECKPOINTS: ["test_a_checkpoint_runs_no_code"],
        BOOTSTRAP: ["test_an_old_torch_is_not_used"],
    }),
    52: ("a secret that leaks", {
        RUNNING: [
            "test_row_52_a_secret_is_in_no_command_line_state_log_user_data_or_file_of_the_rented_machine",
        ],
        SUPERVISOR: ["test_secrets_are_gone_however_the_job_ends"],
    }),
    53: ("shell in a name or a value", {
        RUNNING: ["test_row_53_no_word_is_ever_shell"],
        BAD_INPUT: ["test_a_bad_name"],
        SSH: ["test_a_command_is_its_words_whatever_is_in_them"],
    }),
    54: ("a field that is none", {
        RUNNING: ["test_row_54_an_unknown_field_is_2_with_what_was_meant_and_no_cloud_is_asked"],
        CONFIG: ["test_an_unknown_field_is_named_with_what_was_meant"],
    }),
}  # fmt: skip


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_its_tests(row: int) -> None:
    for file, names in ROWS[row][1].items():
        assert names and set(names) <= functions(REPOSITORY / file), file


@pytest.mark.parametrize("file", OWN)
def test_no_test_is_of_a_row_that_does_not_name_it(file: str) -> None:
    named = {name for _, files in ROWS.values() for name in files.get(file, [])}
    assert {name for name in functions(REPOSITORY / file) if name.startswith("test_row_")} == named
    for row, (_, files) in ROWS.items():
        assert all(name.startswith(f"test_row_{row:02}_") for name in files.get(file, []))


def test_the_rows_are_all_there() -> None:
    assert list(ROWS) == list(range(1, 55))
