"""The built-in tasks by name; ``base.Task`` says what a task is."""

from grpo_lib.support.checks import check_choice
from grpo_lib.tasks.base import Problem, Task, is_held_out
from grpo_lib.tasks.chain import ChainTask
from grpo_lib.tasks.sorting import SortTask

TASKS = {"chain": ChainTask, "sort": SortTask}


def get_task(name: str) -> Task:
    """A built-in task with its usual settings. ValueError lists the names."""
    check_choice("task", name, TASKS)
    return TASKS[name]()


__all__ = ["TASKS", "ChainTask", "Problem", "SortTask", "Task", "get_task", "is_held_out"]
