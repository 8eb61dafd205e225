"""What the queue's own tables do not keep. Those are procrastinate's, and no models of ours."""

from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.database import Base, CreatedAt


class JobError(Base):
    """The last error of a job, in one line. It goes when the job goes; there is no foreign key into the library's table."""

    __tablename__ = "job_errors"

    job_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    error: Mapped[str]
    occurred_at: Mapped[CreatedAt]
