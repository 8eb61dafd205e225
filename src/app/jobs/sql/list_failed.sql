SELECT job.id, job.task_name AS name, job.attempts, error.error,
       (SELECT max(event.at) FROM procrastinate_events event WHERE event.job_id = job.id) AS failed_at
FROM procrastinate_jobs job LEFT JOIN job_errors error ON error.job_id = job.id
WHERE job.status = 'failed' ORDER BY job.id
