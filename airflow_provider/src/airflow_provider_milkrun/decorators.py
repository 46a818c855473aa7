"""
`@task.milkrun`: the function returns rows, the task runs them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)
from airflow.sdk import Context

from airflow_provider_milkrun.operators import MilkrunInferOperator


class MilkrunDecoratedOperator(DecoratedOperator, MilkrunInferOperator):
    """
    Calls the function for the rows, then does as `MilkrunInferOperator`.

    The function runs once more in every attempt: rows that differ then make a new job in the old one's place.
    """

    custom_operator_name = "@task.milkrun"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in MilkrunInferOperator.template_fields if name != "rows"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **MilkrunInferOperator.template_fields_renderers,
    }

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            rows=SET_DURING_EXECUTION,
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """Call the function, submit what it returned, defer."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        self._rows = self.python_callable(*self.op_args, **kwargs)
        return MilkrunInferOperator.execute(self, context)


def milkrun_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """
    Turn a function that returns rows (or the path of a file) into a task that runs them.

    Args:
        python_callable: the function.
        kwargs: the arguments of `MilkrunInferOperator`, except rows.

    Example:
        @task.milkrun(prompt="Classify: {text}", output_schema=["good", "bad"])
        def classify(day: str) -> list[dict[str, str]]:
            return reviews_of(day)
    """
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=MilkrunDecoratedOperator,
        **kwargs,
    )
