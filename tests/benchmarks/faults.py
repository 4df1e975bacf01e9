"""Forty mistakes that somebody could make in the package, and for each the test that has to notice it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """One mistake: `right`, which stands in the file exactly once, becomes `wrong`."""

    name: str
    file: str  # below the project's folder
    right: str
    wrong: str
    noticed_by: str  # a test's or a notebook's node id for pytest

    def plant(self, copy: Path) -> None:
        """Make the mistake in a copy of the project."""
        path = copy / self.file
        source = path.read_text(encoding="utf-8")
        count = source.count(self.right)
        assert count == 1, f"{self.file} holds {count} times what '{self.name}' replaces: '{self.right}'"
        path.write_text(source.replace(self.right, self.wrong), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), str(path), "exec")  # a fault in the numbers, not in the syntax


_DATA = [
    Fault(
        "an id used twice is accepted",
        "qa_helpers/data/squad_file.py",
        'if row["id"] in seen:',
        "if False:",
        "tests/data/test_squad_file.py::test_a_broken_file_gives_one_sentence_that_names_the_place[id used twice]",
    ),
    Fault(
        "the fingerprint does not see the answers",
        "qa_helpers/data/squad.py",
        'fields = [row["id"], row["context"], row["question"], answers]',
        'fields = [row["id"], row["context"], row["question"]]',
        "tests/data/test_squad.py::test_the_fingerprint_changes_with_everything_that_decides_a_result",
    ),
    Fault(
        "a larger draw does not contain the smaller one",
        "qa_helpers/data/squad.py",
        "np.random.default_rng(seed).permutation(size)[:limit]",
        "np.random.default_rng([seed, limit]).permutation(size)[:limit]",
        "tests/data/test_squad.py::test_draws_are_nested_whatever_the_sizes",
    ),
    Fault(
        "a cloze question has the span that it asks for among its answers",
        "qa_helpers/data/cloze.py",
        "[occurrence for occurrence in occurrences if occurrence.sentence != asked.sentence]",
        "list(occurrences)",
        "tests/data/test_cloze.py::test_the_example_of_the_modules_head",
    ),
    Fault(
        "an answer's label begins one token late",
        "qa_helpers/data/windows.py",
        "(first + start_token, first + end_token)",
        "(first + start_token + 1, first + end_token)",
        "tests/data/test_windows.py::test_labels_of_an_answer_at_the_edges_of_words[bar-4-labelled0]",
    ),
    Fault(
        "a window is labelled with an answer that it cuts",
        "qa_helpers/data/windows.py",
        "if begin < low or end > high:",
        "if begin < low:",
        "tests/data/test_windows.py::test_an_answer_that_one_window_cuts_stands_whole_in_another",
    ),
    Fault(
        "soft labels of several annotators add up to more than one",
        "qa_helpers/training/labels.py",
        "(1 - smoothing) / len(answers)",
        "(1 - smoothing)",
        "tests/training/test_labels.py::test_targets_are_distributions_over_the_windows_own_tokens",
    ),
]
_EVALUATION = [
    Fault(
        "EM without normalisation",
        "qa_helpers/evaluation/metrics.py",
        "any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers)",
        "any(prediction == answer for answer in answers)",
        "tests/evaluation/test_metrics.py::test_every_metric_and_category",
    ),
    Fault(
        "articles are compared",
        "qa_helpers/evaluation/metrics.py",
        '_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))',
        "text.lower().translate(_PUNCTUATION)",
        "tests/evaluation/test_metrics.py::test_normalising",
    ),
    Fault(
        "F1 with the given answer that fits least",
        "qa_helpers/evaluation/metrics.py",
        "return max(_f1(",
        "return min(_f1(",
        "tests/evaluation/test_metrics.py::test_every_metric_and_category",
    ),
    Fault(
        "spans may end on the question",
        "qa_helpers/evaluation/span_answers.py",
        "end_logits = end_logits.float().masked_fill(~allowed, -torch.inf)",
        "end_logits = end_logits.float()",
        "tests/evaluation/test_span_answers.py::test_best_spans_of_a_real_size_equal_a_double_loop",
    ),
    Fault(
        "the span search tries two starts only",
        "qa_helpers/evaluation/span_answers.py",
        "topk(min(n_best, start_logits.shape[1]), dim=1)",
        "topk(min(2, start_logits.shape[1]), dim=1)",
        "tests/evaluation/test_span_answers.py::test_best_spans_of_a_real_size_equal_a_double_loop",
    ),
    Fault(
        "people are scored against their own answer, too",
        "qa_helpers/evaluation/metrics.py",
        "given[:i] + given[i + 1 :]",
        "given",
        "tests/evaluation/test_metrics.py::test_annotators_are_scored_against_the_others",
    ),
    Fault(
        "padding counts in an embedding",
        "qa_helpers/evaluation/retrieval.py",
        "(hidden * real).sum(1) / real.sum(1)",
        "hidden.mean(1)",
        "tests/evaluation/test_retrieval.py::test_an_embedding_is_the_mean_of_the_tokens_hidden_states_scaled_to_length_one",
    ),
]
_STATISTICS = [
    Fault(
        "clusters are ignored in a paired difference",
        "qa_helpers/evaluation/comparisons.py",
        "bootstrap_mean(b - a, seed, clusters",
        "bootstrap_mean(b - a, seed, None",
        "tests/evaluation/test_comparisons_clusters.py::test_the_interval_of_a_difference_over_articles",
    ),
    Fault(
        "clusters are ignored in a win rate",
        "qa_helpers/evaluation/comparisons.py",
        "bootstrap_mean(50 * (np.sign(b - a) + 1), seed, clusters",
        "bootstrap_mean(50 * (np.sign(b - a) + 1), seed, None",
        "tests/evaluation/test_comparisons_clusters.py::test_the_interval_of_a_win_rate_over_articles",
    ),
    Fault(
        "too few questions are said to be needed",
        "qa_helpers/evaluation/statistics.py",
        "by_power * math.sqrt(disagreement - difference**2)",
        "by_power * (disagreement - difference**2)",
        "tests/evaluation/test_statistics.py::test_questions_needed_are_the_published_numbers",
    ),
    Fault(
        "calibration error is a mean over bins, not over questions",
        "qa_helpers/evaluation/statistics.py",
        "float(np.abs(totals[1] - totals[0]).sum() / len(sure))",
        "float(np.nanmean(np.abs(mean_right - mean_sure)))",
        "tests/evaluation/test_statistics.py::test_a_reliability_table_counted_by_hand",
    ),
    Fault(
        "the power law grows with the data",
        "qa_helpers/report/learning_curve.py",
        "scale * (size / self.reference) ** -exponent",
        "scale * (size / self.reference) ** exponent",
        "tests/report/test_learning_curve.py::test_an_exact_law_is_recovered",
    ),
]
_TRAINING = [
    Fault(
        "learning rate divided by ten",
        "qa_helpers/training/trainer.py",
        "learning_rate=settings.learning_rate,",
        "learning_rate=settings.learning_rate / 10,",
        "tests/training/test_trainer.py::test_the_learning_rate_of_each_step[linear-0.0]",
    ),
    Fault(
        "lower layers learn faster",
        "qa_helpers/training/trainer.py",
        "rate * decay**n",
        "rate * decay**-n",
        "tests/training/test_trainer.py::test_the_learning_rate_of_each_layer[all]",
    ),
    Fault(
        "a run goes on from a checkpoint that was not written to its end",
        "qa_helpers/training/trainer.py",
        "if (path / COMPLETE).exists():",
        "if path.exists():",
        "tests/training/test_trainer.py::test_the_newest_complete_checkpoint_is_chosen_and_unfinished_ones_go",
    ),
    Fault(
        "the first layers are trained instead of the last",
        "qa_helpers/model/trainable.py",
        "*layers[-int(last[1]) :]",
        "*layers[: int(last[1])]",
        "tests/model/test_trainable.py::test_what_is_trained",
    ),
    Fault(
        "an encoder's adapter at half its scale",
        "qa_helpers/model/trainable.py",
        'lora_alpha=2 * LORA_RANK, target_modules="all-linear"',
        'lora_alpha=LORA_RANK, target_modules="all-linear"',
        "tests/model/test_adapter_scale.py::test_an_adapter_of_an_encoder_acts_as_strongly_as_its_paper_says[lora-12]",
    ),
    Fault(
        "a language model's adapter at half its scale",
        "qa_helpers/model/trainable.py",
        "lora_alpha=2 * LORA_RANK, **common)",
        "lora_alpha=LORA_RANK, **common)",
        "tests/model/test_adapter_scale.py::test_an_adapter_of_a_language_model_acts_as_strongly_as_its_paper_says[lora]",
    ),
    Fault(
        "a language model is trained on the prompt, too",
        "qa_helpers/evaluation/written_answers.py",
        "[IGNORED] * len(prompt) + reply",
        "prompt + reply",
        "tests/evaluation/test_written_answers.py::test_every_label_token_by_token",
    ),
    Fault(
        "an average is of all runs but one",
        "qa_helpers/model/combine.py",
        "parameter.copy_(sums[name] / count)",
        "parameter.copy_((sums[name] - parameter) / (count - 1))",
        "tests/model/test_combine.py::test_the_mean_of_weights_does_not_depend_on_their_order[5]",
    ),
    # As many questions as the validation set holds: their number does not give the fault away.
    Fault(
        "evaluation on training questions",
        "qa_helpers/experiment/run.py",
        'rows = load_qa(experiment.data, "validation")',
        'rows = load_qa(experiment.data, "train", len(load_qa(experiment.data, "validation")))',
        "tests/experiment/test_probes.py::test_the_probes_are_of_the_training_and_of_the_validation_questions",
    ),
    Fault(
        "the probe of validation questions is drawn from the training questions",
        "qa_helpers/experiment/run.py",
        '"eval": _probe(rows.asked, experiment)',
        '"eval": _probe(rows.train, experiment)',
        "tests/experiment/test_probes.py::test_the_probes_are_of_the_training_and_of_the_validation_questions",
    ),
    Fault(
        "a run that starts from another does not wait for it",
        "qa_helpers/experiment/sweep.py",
        "if pending.isdisjoint(experiment.parents)]",
        "if pending]",
        "tests/experiment/test_sweep.py::test_processes_run_side_by_side_but_after_what_they_start_from",
    ),
    Fault(
        "a record's scores need not be those of its questions",
        "qa_helpers/experiment/scores.py",
        "if abs(mean - score.value) > rounding:",
        "if abs(mean - score.value) > 100:",
        "tests/experiment/test_record.py::test_a_broken_record_gives_one_sentence_that_names_the_field",
    ),
]
_RLHF = [
    Fault(
        "PPO gains from moving further than its clip",
        "qa_helpers/rlhf/losses.py",
        "torch.minimum(ratio * advantage",
        "torch.maximum(ratio * advantage",
        "tests/rlhf/test_rlhf_losses.py::test_ppo_gains_nothing_from_moving_further_than_its_clip",
    ),
    Fault(
        "KL the other way round",
        "qa_helpers/rlhf/policy.py",
        "return expectation(log_p, log_p - log_ref)",
        "return expectation(log_ref, log_ref - log_p)",
        "tests/rlhf/test_rlhf_policy.py::test_kl_equals_its_estimate_from_samples",
    ),
    Fault(
        "the optimum multiplies the reward by beta",
        "qa_helpers/rlhf/policy.py",
        "return (log_ref + reward / beta).log_softmax(1)",
        "return (log_ref + reward * beta).log_softmax(1)",
        "tests/rlhf/test_rlhf_policy.py::test_the_closed_form_is_the_optimum_and_every_other_policy_falls_short_by_its_kl",
    ),
    Fault(
        "rewards of different questions do not compare",
        "qa_helpers/rlhf/reward.py",
        "reward = reward - expectation(batch.log_ref, reward)[:, None]",
        "reward = reward - reward.mean()",
        "tests/rlhf/test_rlhf_reward.py::test_rewards_of_all_spans_are_the_scores_less_their_mean_under_the_reference",
    ),
    Fault(
        "a chain's reward accuracy is measured on the pairs that it learned",
        "qa_helpers/rlhf/chain.py",
        'asked.ranked(rankings, "held out")',
        'asked.ranked(rankings, "learn")',
        "tests/rlhf/test_rlhf_chains.py::"
        "test_a_reward_model_is_measured_on_the_held_out_pairs_with_intervals_over_questions[courseqa]",
    ),
    Fault(
        "all policies of a chain pay the same for KL",
        "qa_helpers/rlhf/chain.py",
        "beta=plan.beta",
        "beta=0.1",
        "tests/rlhf/test_rlhf_chains.py::test_a_very_large_beta_holds_the_policy_where_a_small_one_lets_it_go[courseqa]",
    ),
    Fault(
        "a chain's reward models stay on the CPU",
        "qa_helpers/rlhf/chain.py",
        ".to(asked.device)",
        "",
        "tests/rlhf/test_rlhf_chains.py::test_a_chains_reward_model_is_trained_where_the_reference_is[courseqa]",
    ),
    Fault(
        "two parts of a chain share their articles",
        "qa_helpers/rlhf/preferences.py",
        "(*split_by_article(rows, 0.2), held_out)",
        "(rows, rows, held_out)",
        "tests/rlhf/test_rlhf_chains.py::"
        "test_no_two_parts_share_an_article_and_none_has_one_that_the_reference_was_trained_on[courseqa]",
    ),
    Fault(
        "of SQuAD, held-out questions are learned from",
        "qa_helpers/rlhf/chain.py",
        "pool, held_out = split_by_article(held_out, 0.25)",
        "pool, held_out = held_out, split_by_article(held_out, 0.25)[1]",
        "tests/rlhf/test_rlhf_chains.py::"
        "test_no_two_parts_share_an_article_and_none_has_one_that_the_reference_was_trained_on[squad]",
    ),
]
_TESTS = [
    Fault(
        "the list of stages has one that does not exist",
        "tests/test_package.py",
        '    "course",\n',
        '    "cluster",\n    "course",\n',
        "tests/test_package.py::test_every_module_lies_in_a_stage_and_every_stage_is_there",
    ),
]
FAULTS = [*_DATA, *_EVALUATION, *_STATISTICS, *_TRAINING, *_RLHF, *_TESTS]
