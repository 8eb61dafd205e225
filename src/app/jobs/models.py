"""The table that this application adds to those of procrastinate. procrastinate's own tables have no models."""

from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.database import Base, CreatedAt


class JobError(Base):
    """The last error of a job, in one line. It is deleted with the job; no foreign key refers to procrastinate's table."""

    __tablename__ = "job_errors"

    job_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    error: Mapped[str]
    occurred_at: Mapped[CreatedAt]
