// The option table, part four: how a network is trained.
#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/option_groups.h"

namespace evenkeel::cli {

std::vector<Option> optimization_options() {
  const std::string group = "Optimization";
  const std::vector<std::string> train = {"train"};
  return {
      {train, group, "epochs", 'e', "N", "Passes over the training set.", integer(EK_FIELD(train.epochs), 1, 1000000)},
      {train, group, "learning-rate", 'l', "X", "The largest learning rate of the schedule.",
       number(EK_FIELD(train.learning_rate), kPositive)},
      {train, group, "optimizer", 0, "NAME", "How the gradients change the weights.",
       named(EK_FIELD(train.optimizer.kind), optimizer_names(), optimizer_from_name)},
      {train, group, "schedule", 0, "NAME", "How the learning rate changes from step to step.",
       named(EK_FIELD(train.schedule), schedule_names(), schedule_from_name)},
      {train, group, "warmup-epochs", 0, "X",
       "Epochs in which the learning rate rises from 0, as in --schedule cosine --warmup-epochs 1; one-cycle has its "
       "own rise.",
       number(EK_FIELD(train.warmup_epochs), kNotNegative)},
      {train, group, "plateau-patience", 0, "N",
       "--schedule plateau: multiply the rate by --step-factor after N epochs in which the validation loss (or "
       "accuracy, with --keep best-accuracy) was no better than before.",
       integer(EK_FIELD(train.plateau_patience), 1, 1000000)},
      {train, group, "step-epochs", 0, "X", "Epochs between the steps of --schedule step.",
       number(EK_FIELD(train.step_epochs), kPositive)},
      {train, group, "step-factor", 0, "X", "What the learning rate is multiplied by at a step.",
       number(EK_FIELD(train.step_factor), kShare)},
      {train, group, "weight-decay", 0, "X", "Pull of the weights towards 0.",
       number(EK_FIELD(train.optimizer.weight_decay), kNotNegative), "0.01 for adamw, else 0"},
      {train, group, "decay-norm-and-bias", 0, "", "Let gamma, beta and the biases decay too.",
       flag(EK_FIELD(train.optimizer.decay_norm_and_bias))},
      {train, group, "momentum", 0, "X", "Of the optimizers momentum and nesterov.",
       number(EK_FIELD(train.optimizer.momentum), kFraction)},
      {train, group, "rmsprop-alpha", 0, "X", "Weight of the old mean square in rmsprop.",
       number(EK_FIELD(train.optimizer.alpha), kFraction)},
      {train, group, "beta1", 0, "X", "Weight of the old mean in adam and adamw.",
       number(EK_FIELD(train.optimizer.beta1), kFraction)},
      {train, group, "beta2", 0, "X", "Weight of the old mean square in adam and adamw.",
       number(EK_FIELD(train.optimizer.beta2), kFraction)},
      {train, group, "optimizer-eps", 0, "X", "Added to the root in rmsprop, adam and adamw.",
       number(EK_FIELD(train.optimizer.eps), kPositive)},
      {train, group, "clip-norm", 0, "X", "Clip the gradients to this norm over all parameters; 0 is off.",
       number(EK_FIELD(train.optimizer.clip_norm), kNotNegative)},
      {train, group, "average-weights", 0, "HOW",
       "Evaluate and save an average of the weights over the steps: ema=0.999 (exponential, with that decay) or swa=2 "
       "(plain, from epoch 2 on). Its running statistics are made anew from the training set.",
       read_by(EK_FIELD(train.average), parse_averaging)},
      {train, group, "loss", 0, "NAME",
       "What is made small: cross_entropy, or mse against one-hot labels (what is shown as probabilities is then only "
       "a ranking).",
       choice(EK_FIELD(train.loss), {{"cross_entropy", "cross_entropy"}, {"mse", "mse"}}), "cross_entropy"},
      {train, group, "label-smoothing", 0, "X", "Share of the target spread over all classes.",
       number(EK_FIELD(train.label_smoothing), kFraction), "0"},
      {train, group, "keep", 0, "WHICH",
       "Which epoch's model is saved: the last one's, or that of the best by the validation set (--validation).",
       choice(EK_FIELD(train.keep),
              {{"last", Keep::kLast}, {"best-loss", Keep::kBestLoss}, {"best-accuracy", Keep::kBestAccuracy}})},
      {train, group, "patience", 0, "N",
       "Stop after N epochs in which the validation loss (or accuracy, with --keep best-accuracy) was no better than "
       "before; 0: never.",
       integer(EK_FIELD(train.patience), 0, 1000000)},
      {train, group, "min-delta", 0, "X",
       "An epoch is better than those before where the validation loss is lower by more than X, or the accuracy higher "
       "(a share: 0.001 is 0.1 %): for --keep, --patience and --schedule plateau.",
       number(EK_FIELD(train.min_delta), kNotNegative)},
      {train, group, "on-nonfinite", 0, "WHAT",
       "A value that is not finite stops the run (exit code 6), or the batch is skipped.",
       choice(EK_FIELD(train.on_nonfinite), {{"stop", OnNonfinite::kStop}, {"skip", OnNonfinite::kSkip}})},
  };
}

}  // namespace evenkeel::cli
