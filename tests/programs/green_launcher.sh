#!/bin/bash
# Stands in for a launcher (train.sh) of the study's repositories: prints what the original prints, lies included.
# It is told what to do by GREEN_ENDING: honest, traceback (the program swallowed it and exits 0), stale (the launcher
# prints its success tag although nothing trained). GREEN_LINES is how many progress lines it prints, ten a second.
ending=${GREEN_ENDING:-honest}
lines=${GREEN_LINES:-6}
repository=$(basename "$PWD")

line() {
    case $repository in
    examples) echo "Train Epoch: 1 [$(($1 * 32))/60000 ($1%)]	Loss: 0.4" ;;
    pytorch_resnet_cifar10) echo "Epoch: [0][$1/391]	Time 0.1 (0.1)	Loss 1.9 (2.0)	Prec@1 30.1 (29.0)" ;;
    *) printf '\r  %s%%|## | %s/539 [00:01<00:10]' "$1" "$1" ;;
    esac
}

report() {
    echo
    case $repository in
    examples) echo "[SUCCESS] training finished"; echo "Test Accuracy: 93%" ;;
    pytorch_resnet_cifar10) echo "测试准确率: 50.98%"; echo "最佳验证准确率: 50.98%" ;;
    VulBERTa) echo "final training loss: 0.69" ;;
    Person_reID_baseline_pytorch) echo "Rank@1:0.663 Rank@5:0.820 Rank@10:0.873 mAP:0.420" ;;
    MRT-OAST) echo "Precision: 0.9834"; echo "Recall: 0.8089" ;;
    esac
}

if [ "$ending" = stale ]; then
    report
    exit 0
fi
"$GREEN_PYTHON" "$GREEN_STAND_IN" --silent --hold 700 --steps $((lines + 2)) --step-s 0.1 &
holder=$!
for ((number = 1; number <= lines; number++)); do
    line "$number"
    sleep 0.1
done
if [ "$ending" = traceback ]; then
    echo "Traceback (most recent call last):"
    echo '  File "train_vulberta.py", line 300, in main'
    echo "RuntimeError: stack expects each tensor to be equal size"
    kill "$holder"
    echo "[SUCCESS] VulBERTa training completed"
    exit 0
fi
wait "$holder"
report
