"""Every fault of the study's list and more (E1 on): how it is provoked, what is expected, and by which tests.

`reliability` makes docs/reliability.md of it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One row. ``feasible`` says why a FEASIBLE is right there; ``untested`` why there is no test."""

    number: str
    fault: str
    provoked: str
    expected: str
    tests: tuple[str, ...] = ()
    feasible: str = ""
    untested: str = ""


_ATTACK = "test_hostile.py::test_a_foreground_that_attacks_its_own_record_proves_nothing"

FAULTS = (
    Fault(
        "1",
        "SIGKILL of the harness in the middle of a group",
        "SIGKILL of real sessions, at the k-th file or process",
        "trainings gone within 5 s; the group is interrupted, the others kept",
        (
            "test_runner.py::test_sigkill_of_the_harness_leaves_nothing_alive",
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n0-SIGKILL]",
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n1-SIGKILL]",
            "test_resume.py::test_a_session_killed_at_any_point_is_resumed",
        ),
    ),
    Fault(
        "2",
        "SIGTERM or Ctrl-C, also twice",
        "signals to real sessions",
        "members ended, record written, exit code 130 or 143; the second kills at once",
        (
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n0-SIGINT]",
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n0-SIGTERM]",
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n1-SIGINT]",
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n1-SIGTERM]",
            "test_completeness.py::test_a_second_signal_ends_the_run_at_once",
        ),
    ),
    Fault(
        "3",
        "power loss or reboot",
        "another boot id, records that end anywhere",
        "the group is interrupted and says why; processes are known by cookie only",
        (
            "test_resume.py::test_what_no_longer_holds_is_explained[a restart of the machine in between]",
            "test_trace_files.py::test_every_torn_last_line_is_dropped_and_told",
        ),
    ),
    Fault(
        "4",
        "the foreground hangs",
        "a stand-in that stops",
        "ended after the plan's stall time, INCONCLUSIVE",
        ("test_group_run.py::test_evidence_with_a_hole_is_inconclusive[a hang]",),
    ),
    Fault(
        "5",
        "a process ignores SIGTERM, or sits in an uninterruptible call",
        "a stand-in that ignores signals; one frozen by its control group",
        "TERM, KILL, then named as unkillable and the GPU quarantined",
        (
            "test_runner.py::test_a_training_that_ignores_sigterm_is_killed",
            "test_supervisor.py::test_a_process_that_survives_sigkill_is_named",
            "test_faults.py::test_a_gpu_with_a_process_that_cannot_be_ended_is_quarantined",
        ),
    ),
    Fault(
        "6",
        "the background crashes again and again",
        "a stand-in that dies at its second step",
        "back-off, given up, INCONCLUSIVE with its last lines",
        (
            "test_group_run.py::test_evidence_with_a_hole_is_inconclusive[a crash loop]",
            "test_keep_alive.py::test_a_real_crash_loop_ends",
        ),
    ),
    Fault(
        "7",
        "the background exits with 0 at once",
        "a stub",
        "as 6",
        (
            "test_group_run.py::test_evidence_with_a_hole_is_inconclusive"
            "[a stub that exits 0 at once, again and again]",
            "test_verdict.py::test_a_hundred_stub_runs_as_background_are_not_a_load",
        ),
    ),
    Fault(
        "8",
        "the background runs out of memory, the foreground goes on alone",
        "a stand-in at its ninth step",
        "INFEASIBLE",
        ("test_group_run.py::test_proof_that_a_group_does_not_fit[an out-of-memory in the background only]",),
    ),
    Fault(
        "9",
        "an out-of-memory that the training caught",
        "a stand-in that skips the batch, loudly or silently; a real PyTorch program",
        "INFEASIBLE by the allocator's counter",
        (
            "test_group_run.py::test_proof_that_a_group_does_not_fit[an out-of-memory that was swallowed]",
            "test_group_run.py::test_proof_that_a_group_does_not_fit[one that only the allocator saw]",
            "test_emulation.py::test_a_swallowed_out_of_memory_is_still_counted",
        ),
    ),
    Fault(
        "10",
        "the kernel kills for host memory",
        "a control group with 450 MiB, a training that wants 800",
        "INFEASIBLE (host memory), told apart from the GPU's",
        (
            "test_faults_session.py::test_the_kernels_own_killer_is_told_from_a_full_gpu",
            "test_supervisor.py::test_a_kill_by_the_kernel_for_host_memory_is_counted",
        ),
    ),
    Fault(
        "11",
        "somebody holds memory before the start",
        "a foreign process; an orphan of an earlier run; one of a run that goes on",
        "named, waited for, else nothing is started; an orphan of ours is ended after saying so",
        (
            "test_group_run.py::test_a_foreign_process_on_the_gpu_keeps_the_group_from_starting",
            "test_faults.py::test_an_orphan_of_an_earlier_run_is_ended_and_said",
            "test_faults.py::test_a_training_of_another_run_that_goes_on_is_not_touched",
            "test_faults.py::test_a_stranger_who_was_waited_for_spoils_nothing",
            "test_faults.py::test_memory_that_nobody_on_the_list_accounts_for_is_told",
        ),
        feasible="once the orphan is gone or the foreign process has left",
    ),
    Fault(
        "12",
        "memory held by a process that NVML does not list",
        "a GPU that keeps memory; a process with the device file open",
        "the GPU is waited for, then INCONCLUSIVE and quarantined; holders are named",
        (
            "test_group_run.py::test_evidence_with_a_hole_is_inconclusive[memory that stays on the GPU]",
            "test_faults.py::test_a_gpu_in_a_bad_state_is_quarantined[leak]",
            "test_faults_session.py::test_a_quarantined_gpu_gets_no_group_and_the_others_go_on",
            "test_faults_session.py::test_on_the_only_gpu_the_rest_is_refused",
            "test_faults.py::test_a_process_with_the_gpu_open_but_not_on_the_list_is_found",
        ),
    ),
    Fault(
        "13",
        "a zombie with memory",
        "a zombie on the driver's list",
        "named with its state, nothing is started",
        (
            "test_faults.py::test_a_zombie_with_memory_is_named_as_one",
            "test_procfs.py::test_a_description_tells_the_state_of_a_zombie",
        ),
    ),
    Fault(
        "14",
        "no NVML library, or the driver is not loaded",
        "a machine without the library; NVML's return code 9",
        "one line with the cure; the virtual GPU still works",
        (
            "test_faults_session.py::test_a_driver_that_is_not_loaded_is_one_line_with_the_cure",
            "test_device_select.py::test_auto_takes_the_virtual_gpu_without_a_library_and_says_so",
            "test_device_select.py::test_a_driver_that_fails_is_an_error_and_not_a_virtual_gpu",
        ),
    ),
    Fault(
        "15",
        "driver and library differ after an update",
        "NVML's return code 18 at the start and in mid-run",
        "refused at the start; in mid-run the training finishes, INCONCLUSIVE",
        (
            "test_nvml.py::test_a_driver_that_does_not_start_names_the_cure",
            "test_faults.py::test_a_sensor_that_fails_from_now_on_lets_the_training_finish[library-mismatch]",
        ),
    ),
    Fault(
        "16",
        '"Unknown Error" in a container',
        "NVML's return code 999",
        "as 15, and the message names the known cause",
        (
            "test_nvml.py::test_an_error_names_the_gpu_what_nvml_said_and_the_cure",
            "test_faults.py::test_a_sensor_that_fails_from_now_on_lets_the_training_finish[unknown-error]",
        ),
    ),
    Fault(
        "17",
        "the GPU falls off the bus",
        "NVML's return code 15 in mid-run",
        "INCONCLUSIVE, the GPU quarantined by UUID, others go on",
        (
            "test_group_run.py::test_a_gpu_that_is_lost_ends_in_no_verdict",
            "test_faults.py::test_a_gpu_in_a_bad_state_is_quarantined[lost]",
            "test_sampler.py::test_a_gpu_lost_during_the_vitals_ends_the_sampling_too",
        ),
    ),
    Fault(
        "18",
        "the sensor stalls",
        "a call that does not come back",
        "a late sample is a gap; the end is not held up",
        (
            "test_sampler.py::test_a_call_that_never_comes_back_does_not_stop_the_end_and_records_nothing_later",
            "test_sampler.py::test_blocked_vitals_cost_no_sample",
        ),
    ),
    Fault(
        "19",
        "an NVML call blocks for seconds",
        "a blocked call while the foreground trains",
        "a gap with its reason; a long one is INCONCLUSIVE and the group repeated once",
        (
            "test_sampler.py::test_a_blocked_call_is_a_gap_that_can_be_seen_from_outside",
            "test_faults.py::test_a_group_with_a_blind_sensor_is_repeated",
        ),
        feasible="the second attempt was seen without a gap",
    ),
    Fault(
        "20",
        "a reading is not supported",
        "GPUs without a process list, without vitals, without the second memory struct; MIG",
        "unknown, never 0 or -1; judged by the GPU's level; a GPU in MIG mode is refused",
        (
            "test_nvml.py::test_vitals_that_a_gpu_cannot_tell_are_none",
            "test_nvml.py::test_a_driver_without_a_process_list_tells_none_and_not_nobody",
            "test_nvml.py::test_a_gpu_in_mig_mode_is_no_gpu",
            "test_nvml.py::test_a_gpu_that_tells_no_memory_at_all_cannot_be_opened",
            "test_faults.py::test_a_gpu_that_tells_no_processes_is_judged_by_its_level",
        ),
        feasible="the GPU's memory is told, only the list is not",
    ),
    Fault(
        "21",
        "nonsense values",
        "17 TB, above the total",
        "rejected and counted, never the peak",
        (
            "test_sampler.py::test_a_nonsense_answer_never_becomes_the_peak",
            "test_nvml.py::test_more_memory_in_use_than_there_is_is_an_error",
        ),
    ),
    Fault(
        "22",
        "a container is given the host's process numbers",
        "numbers that do not exist here",
        "processes marked unknown, nobody accused, the GPU judged as a whole",
        ("test_faults.py::test_in_a_container_with_the_hosts_numbers_nobody_is_accused",),
    ),
    Fault(
        "23",
        "a process number is used again",
        "another start time under the same number",
        "another process",
        (
            "test_procfs.py::test_another_process_with_the_same_number_is_another_process",
            "test_faults.py::test_a_number_that_is_used_again_is_another_process",
            "test_virtual_gpu.py::test_a_reused_process_id_does_not_inherit_memory",
        ),
    ),
    Fault(
        "24",
        "CUDA and NVML number GPUs differently",
        "CUDA_VISIBLE_DEVICES in all its forms",
        "the UUID counts everywhere; ambiguous numbers are refused",
        (
            "test_nvml.py::test_gpus_are_selected_as_cuda_does",
            "test_nvml.py::test_indices_of_different_gpus_are_ambiguous_without_an_order",
        ),
    ),
    Fault(
        "25",
        "two runs on one GPU, or at one run directory",
        "a second session",
        "it waits or names the holder; a run directory is refused",
        (
            "test_resume.py::test_a_second_run_on_the_same_gpu_says_who_holds_it_or_waits",
            "test_resume.py::test_two_sessions_cannot_be_at_one_run",
            "test_device_lock.py::test_the_lock_dies_with_its_holder",
        ),
    ),
    Fault(
        "26",
        "a foreign process comes in mid-run",
        "a foreign process who leaves, or stays",
        "the interval is recorded, the group repeated once, else INCONCLUSIVE",
        (
            "test_group_run.py::test_a_foreign_process_in_between_makes_the_record_worthless",
            "test_faults.py::test_a_group_that_a_stranger_spoiled_is_repeated_once",
            "test_faults.py::test_a_stranger_who_stays_makes_it_inconclusive",
            "test_faults.py::test_a_stranger_who_takes_the_last_memory_between_two_lists_is_no_proof",
            "test_faults.py::test_retries_are_capped_by_the_plan",
        ),
        feasible="the second attempt had the GPU for itself",
    ),
    Fault(
        "27",
        "a desktop uses part of the GPU",
        "a process that draws",
        "part of the baseline and of the peak, no foreign process",
        ("test_faults.py::test_a_desktop_is_no_stranger_but_counts_for_the_peak",),
        feasible="the desktop's memory is in the peak",
    ),
    Fault(
        "28",
        "the disk fills up",
        "a file system with 3 MiB of room",
        "members ended, records kept in the room that was reserved, exit code not 0",
        (
            "test_faults_session.py::test_a_disk_that_fills_up_ends_the_trainings_and_keeps_the_records",
            "test_faults_session.py::test_a_disk_without_room_for_records_is_one_line",
            "test_faults.py::test_a_log_that_cannot_be_written_ends_the_group",
        ),
    ),
    Fault(
        "29",
        "results cannot be written, or vanish",
        "a read-only file system; a training that removes its folder",
        "refused before the start; never a success without its record",
        (
            "test_faults_session.py::test_results_that_cannot_be_written_are_one_line",
            "test_faults_session.py::test_results_that_vanish_are_never_a_success",
        ),
    ),
    Fault(
        "30",
        "settings that are wrong",
        "every kind of mistake; a BOM; 50 MB; deep nesting; random bytes",
        "all mistakes at once, with places; nothing started",
        (
            "test_plan.py::test_all_mistakes_of_a_plan_are_told_at_once_in_the_order_of_the_file",
            "test_plan.py::test_any_bytes_are_a_plan_or_a_plan_error",
            "test_settings.py::test_a_broken_file_is_refused_with_its_place",
            "test_settings.py::test_a_byte_order_mark_and_windows_line_ends_are_accepted",
            "test_settings.py::test_a_file_of_50_mb_is_one_clear_line",
            "test_settings.py::test_deep_nesting_is_one_clear_line",
        ),
    ),
    Fault(
        "31",
        "a record is cut short",
        "traces, verdicts and records that end anywhere",
        "told, not judged as if whole; run again on resume",
        (
            "test_group_run.py::test_a_record_that_lost_samples_is_not_judged_as_if_it_were_whole",
            "test_resume.py::test_what_no_longer_holds_is_explained[a record cut short]",
            "test_resume.py::test_what_no_longer_holds_is_explained[a verdict cut short]",
            "test_resume.py::test_what_no_longer_holds_is_explained[a verdict that was tampered with]",
        ),
        feasible="the group was sound before its record was cut",
    ),
    Fault(
        "32",
        "settings change between run and resume",
        "an edited plan, another torch",
        "the changed group runs again, the others are kept, each with its reason",
        (
            "test_resume.py::test_a_changed_group_runs_again_beside_its_old_record",
            "test_resume.py::test_what_no_longer_holds_is_explained[a setting]",
            "test_resume.py::test_what_no_longer_holds_is_explained[a version]",
        ),
    ),
    Fault(
        "33",
        "the clock jumps, the machine sleeps",
        "a boot-time clock ahead of the monotonic one",
        "durations are monotonic; a sleep is a gap",
        (
            "test_sampler.py::test_a_suspended_machine_is_a_gap",
            "test_verdict.py::test_what_leaves_the_proof_incomplete_is_inconclusive",
        ),
    ),
    Fault(
        "34",
        "gigabytes of log",
        "a stand-in that floods",
        "head and tail kept, the harness's memory flat",
        (
            "test_runner.py::test_a_flood_fills_neither_memory_nor_disk",
            "test_output.py::test_a_line_of_megabytes_counts_once_and_needs_little_memory",
        ),
        feasible="a long log is no fault of the group",
    ),
    Fault(
        "35",
        "a log that is no text",
        "NUL, broken UTF-8, carriage returns, a line without end",
        "kept as it is, shown as text, searched all the same",
        (
            "test_runner.py::test_the_log_has_every_byte_and_last_lines_are_text",
            "test_runner.py::test_a_megabyte_without_newline_is_searched_to_its_end",
            "test_output.py::test_how_the_output_was_cut_into_reads_does_not_matter",
        ),
        feasible="as 34",
    ),
    Fault(
        "36",
        "a member closes its output, daemonises, leaves children",
        "stand-ins that do",
        "followed to the end and ended",
        (
            "test_runner.py::test_closing_its_output_does_not_hide_a_training",
            "test_runner.py::test_a_daemon_of_the_training_is_ended_with_it",
            "test_faults.py::test_a_training_that_daemonises_is_followed_and_proves_nothing",
            "test_faults.py::test_a_training_that_leaves_a_child_with_memory_is_ended_with_it",
        ),
        feasible="a child left behind after a finished epoch is ended and told",
    ),
    Fault(
        "37",
        "a member uses another GPU",
        "a stand-in on two GPUs",
        "noticed, INCONCLUSIVE: its load was not all on ours",
        (
            "test_faults.py::test_a_member_that_uses_another_gpu_too_is_noticed",
            "test_faults.py::test_a_member_on_another_gpu_is_noticed_however_short_the_group_is",
            "test_faults.py::test_a_foreground_on_a_gpu_that_no_list_of_ours_shows_left_no_trace",
        ),
    ),
    Fault(
        "38",
        "a fork bomb, no descriptors left",
        "a program that forks and exits without end; one of 300 processes in 300 sessions",
        "ended with all its processes once it has more than max_processes, INCONCLUSIVE",
        (
            "test_runner.py::test_a_process_that_forks_and_exits_without_end_is_caught",
            "test_runner.py::test_a_fork_bomb_is_ended_before_it_takes_the_machine",
            "test_faults.py::test_a_fork_bomb_in_the_foreground_is_ended_and_proves_nothing",
            "test_faults.py::test_a_fork_bomb_in_the_background_is_not_started_again",
        ),
    ),
    Fault(
        "39",
        "markup in names, notes and logs",
        "a plan and a log full of it",
        "text in every report, one path component, no shell, no value of the environment",
        (
            "test_faults_session.py::test_hostile_names_notes_and_logs_stay_text_and_in_their_folder",
            "test_faults_session.py::test_a_name_that_is_no_name_is_refused",
            "test_plugin.py::test_markup_in_names_and_reasons_stays_text",
            "test_layout.py::test_no_name_leaves_the_run_directory",
        ),
    ),
    Fault(
        "40",
        "a report or summary cannot be written",
        "a folder in its place",
        "the verdicts are on disk before",
        (
            "test_plugin.py::test_a_summary_that_cannot_be_written_costs_no_verdict",
            "test_summary.py::test_a_damaged_record_does_not_take_the_others_with_it",
        ),
        feasible="the verdict does not depend on its report",
    ),
    Fault(
        "41",
        "a worker of pytest dies, or -x",
        "a training that kills its worker",
        "CRASHED for that group, the others go on; what did not start is NOT RUN",
        (
            "test_session.py::test_every_group_has_the_outcome_that_it_deserves[killed-worker]",
            "test_completeness.py::test_a_killed_worker_is_a_crash_of_its_group_only",
            "test_completeness.py::test_a_failure_with_x_leaves_the_rest_not_run",
        ),
    ),
    Fault(
        "42",
        "throttling",
        "throttle reasons of the simulated GPU",
        "recorded with the vitals, a warning beside the verdict on memory",
        (
            "test_nvml.py::test_vitals_are_what_the_gpu_tells",
            "test_faults.py::test_a_gpu_that_is_slowed_down_for_heat_is_told_beside_the_verdict",
        ),
        feasible="heat changes time, not memory",
    ),
    Fault(
        "43",
        "first-run effects",
        "a peak before the background is ready",
        "every sample from the first counts for the peak; times are the trainings' own per epoch",
        (
            "test_verdict.py::test_one_more_sample_never_lowers_the_peak",
            "test_sampler.py::test_samples_are_the_gpus_readings_in_order",
        ),
        feasible="the peak includes them",
    ),
    Fault(
        "44",
        "the peak differs between repeats",
        "runs_per_config, with runs that differ",
        "the worst run decides, the spread is shown, less headroom than spread is INCONCLUSIVE",
        (
            "test_attempts.py::test_the_worst_run_decides_and_the_spread_is_shown",
            "test_attempts.py::test_a_headroom_smaller_than_the_spread_is_inconclusive",
            "test_faults.py::test_a_group_that_is_to_run_several_times_does",
        ),
        feasible="the runs agree",
    ),
    Fault(
        "E1",
        "a spike between two samples",
        "a stand-in that holds 6200 MiB for a moment",
        "caught by accounting or allocator",
        (
            "test_faults.py::test_a_spike_over_the_limit_between_two_samples_is_caught",
            "test_faults.py::test_a_spike_of_one_process_alone_is_proof",
            "test_faults.py::test_a_spike_of_the_background_is_caught_as_well",
        ),
    ),
    Fault(
        "E2",
        "a training survives only by flushing its cache",
        "an allocator that counted retries",
        'FEASIBLE with a loud "tight"',
        ("test_faults.py::test_survival_by_flushing_the_cache_is_feasible_with_a_loud_tight",),
        feasible="it did fit, and it is said how closely",
    ),
    Fault(
        "E3",
        "the supervisor of a training is killed",
        "SIGKILL of it in mid-run",
        "everything of the training is ended, the group repeated once",
        (
            "test_runner.py::test_sigkill_of_the_supervisor_is_told_and_leaves_nothing_alive",
            "test_faults.py::test_a_group_whose_supervisor_was_killed_is_repeated",
        ),
        feasible="the second attempt was left alone",
    ),
    Fault(
        "E4",
        "a plan's program is not there",
        "a missing interpreter",
        "nothing is started",
        (
            "test_group_run.py::test_a_program_that_is_not_there_starts_nothing",
            "test_plan.py::test_an_own_command_that_cannot_run_is_a_mistake_with_its_place",
        ),
    ),
    Fault(
        "E5",
        "many faults one after the other",
        "a seeded soak of eight groups",
        "one outcome per group, no process left, no descriptor or thread more",
        ("test_soak.py::test_a_short_soak_holds_its_invariants",),
        feasible="groups without a fault are in it",
    ),
    Fault(
        "E6",
        "what a training tells is a pipe, a device, a folder or has no end",
        "a stand-in that replaces its events, or leaves 3000 records",
        "read in bounded pieces, nothing is waited for, INCONCLUSIVE",
        (
            f"{_ATTACK}[device_events-events_unreadable]",
            f"{_ATTACK}[pipe_events-events_unreadable]",
            f"{_ATTACK}[folder_events-events_unreadable]",
            f"{_ATTACK}[many_probes-events_unreadable]",
        ),
    ),
    Fault(
        "E7",
        "one training writes the end of the other's epoch",
        "a stand-in that does, in both roles",
        "told by whose process wrote it, INCONCLUSIVE",
        (
            f"{_ATTACK}[other_events-events_mixed_up]",
            "test_hostile.py::test_a_background_cannot_end_the_foregrounds_epoch[before it began]",
            "test_hostile.py::test_a_background_cannot_end_the_foregrounds_epoch[while it trains]",
        ),
    ),
    Fault(
        "E8",
        "a training's words contradict what is known",
        "a record of more memory than the GPU has; an epoch of which PyTorch saw no step",
        "INCONCLUSIVE",
        (
            f"{_ATTACK}[forged_probe-implausible_record]",
            "test_verdict.py::test_an_epoch_of_which_pytorch_saw_no_step_proves_nothing",
        ),
    ),
    Fault(
        "E9",
        "nonsense between sound events",
        "NaN, negative and huge numbers, other clocks, broken characters, a line of 5 MB",
        "left out and told",
        ("test_hostile.py::test_nonsense_beside_sound_events_is_left_out_and_told",),
        feasible="the sound events say all that is needed",
    ),
    Fault(
        "E10",
        "a training stops itself, or its supervisor",
        "SIGSTOP",
        "a hang: ended after the plan's stall time, INCONCLUSIVE",
        (
            f"{_ATTACK}[stop_self-foreground_hang]",
            f"{_ATTACK}[stop_supervisor-foreground_hang]",
        ),
    ),
    Fault(
        "E11",
        "the driver never answers who is on the GPU",
        "the list of processes blocks, everything else answers",
        "asked with a deadline, then nothing is started and the GPU quarantined",
        ("test_hostile.py::test_a_driver_that_never_answers_who_is_there_holds_nobody_up",),
    ),
    Fault(
        "E12",
        "the GPU's size changes in mid-run",
        "another total of the simulated GPU",
        "its readings are rejected, INCONCLUSIVE",
        ("test_hostile.py::test_a_gpu_whose_size_changes_is_not_believed",),
    ),
    Fault(
        "E13",
        "init or the harness itself is on the GPU",
        "their numbers on the driver's list",
        "named, nothing is started",
        ("test_hostile.py::test_the_harness_itself_or_init_on_the_gpu_is_named",),
    ),
    Fault(
        "E14",
        "any bytes in a plan, a catalog, a record, a journal, events",
        "what coverage-guided fuzzing found, and a short walk of the same kind",
        "an answer in words, never another error, never a hang",
        ("test_fuzz.py::test_what_was_found_is_answered_in_words", "test_fuzz.py::test_a_short_walk_finds_nothing"),
    ),
    Fault(
        "E15",
        "two runs begin in the same second on two GPUs",
        "the same names of run and group",
        "each knows its own trainings",
        (
            "test_faults.py::"
            "test_two_runs_that_began_in_the_same_second_do_not_take_each_others_trainings_for_their_own",
        ),
    ),
    Fault(
        "E16",
        "the terminal is closed",
        "SIGHUP to a session, with and without a worker",
        "as SIGTERM: members ended, record written, exit code 129",
        (
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n0-SIGHUP]",
            "test_session.py::test_ending_a_session_leaves_nothing_alive[-n1-SIGHUP]",
        ),
    ),
    Fault(
        "E17",
        "a background that ends well again and again",
        "a thousand short lives",
        "given up, however clean its ends",
        ("test_keep_alive.py::test_a_training_that_ends_again_and_again_is_not_started_for_ever",),
    ),
    Fault(
        "E18",
        "a killed run that nobody resumes",
        "its lock file and its kept room left behind",
        "the next run gives the room back, not that of one that goes on",
        ("test_layout.py::test_a_new_run_gives_back_the_room_of_those_that_were_killed",),
    ),
    Fault(
        "M1",
        "the memory sensor stands still, changes its unit, or is another GPU's",
        "a simulated sensor that stops or answers in MiB, with real trainings; random runs with a wrong sensor",
        "INCONCLUSIVE with the contradiction in words: sensor, lists, allocators and lives are compared all the time",
        (
            "test_measured_faults.py::test_a_sensor_that_stands_still_when_the_foreground_comes_is_not_believed",
            "test_measured_faults.py::test_a_driver_that_tells_another_unit_from_now_on_is_not_believed",
            "test_witnesses.py::test_a_sensor_that_stands_still_while_a_training_comes_is_contradicted",
            "test_witnesses.py::test_a_sensor_that_stands_still_from_some_moment_on_is_contradicted",
            "test_witnesses.py::test_another_unit_from_some_moment_on_is_contradicted",
            "test_witnesses.py::test_an_allocator_that_holds_more_than_the_gpu_is_contradicted",
        ),
    ),
    Fault(
        "M2",
        "the driver's accounting has an earlier process of a number",
        "an accounting record that began before the process; one of less than the process held",
        "it does not count; what contradicts the other witnesses is INCONCLUSIVE",
        (
            "test_nvml.py::test_what_the_driver_accounted_for_an_earlier_process_of_a_number_does_not_count",
            "test_witnesses.py::test_accounting_of_less_than_a_process_held_is_contradicted",
        ),
    ),
    Fault(
        "M3",
        "the background stands still while the foreground trains",
        "pauses between phases and between steps that tell none, split pauses, one number in two process runs",
        "INCONCLUSIVE: a pause counts only as far as it is usual, and the shorter the foreground the shorter it is",
        (
            "test_strides.py::test_a_background_that_stands_still_while_the_foreground_trains_is_no_load",
            "test_strides.py::test_a_step_between_two_pauses_does_not_make_them_training",
            "test_strides.py::test_the_pause_that_is_allowed_shrinks_with_the_foreground",
            "test_strides.py::test_one_number_in_two_runs_is_two_processes",
        ),
    ),
    Fault(
        "M4",
        "the background gives its memory back once it is ready",
        "a stand-in that does and makes steps on",
        "INCONCLUSIVE: it has to hold memory while the foreground trains",
        ("test_measured_faults.py::test_a_background_that_gave_its_memory_back_is_no_load",),
    ),
    Fault(
        "M5",
        "the foreground is killed from outside",
        "SIGKILL by somebody else; signals, shell codes and the words of schedulers",
        "INCONCLUSIVE and repeated once; told apart from the kernel's out-of-memory killer and from its own failure",
        (
            "test_measured_faults.py::test_a_foreground_that_somebody_kills_is_repeated_once",
            "test_remarks.py::test_an_end_from_outside_is_no_verdict",
            "test_remarks.py::test_an_end_of_its_own_is_infeasible",
        ),
        feasible="the second attempt was left alone",
    ),
    Fault(
        "M6",
        "a foreign process that cannot be seen",
        "numbers on the driver's list without a process here, on the host and in a container",
        "counted as foreign; in a container nobody is accused for having the same number",
        (
            "test_measured_faults.py::test_a_process_that_cannot_be_seen_is_a_foreign_one",
            "test_remarks.py::test_a_number_that_stays_on_the_list_and_cannot_be_seen_is_foreign",
            "test_remarks.py::test_in_a_container_more_numbers_than_we_have_processes_are_a_foreign_one",
        ),
    ),
    Fault(
        "M7",
        "drivers and GPUs that answer NVML otherwise",
        "unified memory, shuffled rows of the third list, no third list, impossible rows",
        "refused in words, asked for the second list, or not reported",
        (
            "test_nvml.py::test_unified_memory_is_refused_in_words",
            "test_nvml.py::test_a_driver_that_shuffles_its_rows_is_asked_for_its_second_list",
            "test_nvml.py::test_a_list_that_cannot_be_true_is_not_reported",
            "test_nvml.py::test_before_r510_the_other_gpus_are_asked_for_their_second_list",
        ),
    ),
    Fault(
        "M8",
        "PyTorch's allocator fails and cuDNN tries a smaller workspace",
        "a record with allocations that failed and errors that never reached Python",
        'FEASIBLE with a "tight" that says so',
        (
            "test_measured_faults.py::test_a_smaller_workspace_that_pytorch_tried_itself_is_no_out_of_memory",
            "test_remarks.py::test_an_out_of_memory_that_pytorch_caught_itself_is_told_as_tight",
        ),
        feasible="no error reached the program, and its epoch was finished",
    ),
    Fault(
        "M9",
        "memory that is held and not needed",
        "libraries of JAX in a process, contexts of many processes, a peak before the first step",
        "named beside the verdict, with the variable, and the other order of starting",
        (
            "test_remarks.py::test_a_framework_that_takes_memory_in_advance_is_named_with_its_variable_and_the_other_order",
            "test_remarks.py::test_a_framework_is_known_by_the_libraries_of_its_processes",
            "test_remarks.py::test_contexts_of_many_processes_are_named",
            "test_remarks.py::test_a_peak_before_the_first_step_is_named",
        ),
        feasible="what was seen fits, and it is said what was not",
    ),
)
